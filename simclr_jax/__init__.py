"""SimCLR in JAX and Flax: from images to a scored encoder."""

from typing import TYPE_CHECKING, Any

from simclr_jax.version import __version__

if TYPE_CHECKING:
    from simclr_jax.encoder import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`simclr_jax.load`, imported when it is first used: JAX takes seconds, `--help` should not."""
    if name == "load":
        from simclr_jax.encoder import load

        return load
    raise AttributeError(f"module 'simclr_jax' has no attribute {name!r}")
