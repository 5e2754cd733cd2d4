"""Encoders by name; each maps images `[n, h, w, c]` to a dict of named endpoints."""

from simclr_jax.models import cnn, resnet

ENCODERS = {"resnet": resnet.create, "cnn": cnn.create}
