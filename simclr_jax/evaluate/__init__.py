"""How good an encoder is, in one command: `python -m simclr_jax.evaluate --workdir=RUN`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`evaluate`, DEFAULT and PROTOCOLS, imported late: a mistake on the command line is answered at once."""
    if name not in ("evaluate", "DEFAULT", "PROTOCOLS"):
        raise AttributeError(name)
    from simclr_jax.evaluate import run

    return getattr(run, name)
