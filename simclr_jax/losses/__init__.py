"""Losses by name. Each maps embeddings `[n, 2, d]` to (scalar, metrics)."""

from simclr_jax.losses.contrastive import nt_xent

LOSSES = {"nt_xent": nt_xent}

__all__ = ["LOSSES", "nt_xent"]
