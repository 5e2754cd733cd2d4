"""Images from the latents of a trained encoder and decoder: `python -m simclr_jax.generate --workdir=RUN`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`generate`, imported late: a mistake on the command line is answered at once."""
    if name != "generate":
        raise AttributeError(name)
    from simclr_jax.generate.run import generate

    return generate
