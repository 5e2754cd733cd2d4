"""SimCLR in JAX and Flax: from images to a scored encoder."""

from simclr_jax.version import __version__

__all__ = ["__version__"]
