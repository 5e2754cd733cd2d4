"""Protocols: each tells something of an encoder; the end of a run and the command `evaluate` share them."""

from collections.abc import Callable
from typing import NamedTuple

from simclr_jax.results import Result


class Protocol(NamedTuple):
    """A part of an evaluation."""

    name: str
    run: Callable[..., Result]  # of an `evaluate.subject.Subject`
    needs: tuple[str, ...] = ()  # "labels" (of training and test), "pictures", "random access" (to training)
    after: str = ""  # another one whose classifier it takes
    options: tuple[str, ...] = ()  # fields of config.eval that it reads, beside what the subject has read


def protocol(name: str, *needs: str, after: str = "", options: tuple[str, ...] = ()) -> Callable:
    """Makes a Protocol of the function below."""
    return lambda run: Protocol(name, run, needs, after, options)
