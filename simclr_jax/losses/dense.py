"""The contrastive losses of `config.loss` by name. Each maps embeddings `[n, 2, d]` to (scalar, metrics)."""

import inspect
from collections.abc import Callable

import jax

from simclr_jax.losses.contrastive import Gather, Result, all_here, dcl, dclw, nt_xent, supcon
from simclr_jax.losses.pairwise import margin_triplet, nt_logistic

LOSSES: dict[str, Callable[..., Result]] = {
    "nt_xent": nt_xent,
    "nt_logistic": nt_logistic,
    "margin": margin_triplet,
    "supcon": supcon,
    "dcl": dcl,
    "dclw": dclw,
}


def create(
    name: str,
    *,
    temperature: float,
    normalize: bool,
    one_view: bool,
    semi_hard: bool,
    margin: float,
    sigma: float,
) -> Callable[..., Result]:
    """The loss `name` as a function of (z `[n, 2, d]`, label `[n]`, gather), options bound.

    Args:
      name: one of LOSSES.
      temperature, normalize, one_view, semi_hard, margin, sigma: see the loss's own docstring. A loss
        ignores numbers that it does not use; only supcon uses the labels.

    Raises:
      ValueError: one_view or semi_hard is True and the loss does not take it, or no such loss.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; there are {', '.join(LOSSES)}")
    takes = {each: inspect.signature(loss).parameters for each, loss in LOSSES.items()}
    for option, value in {"one_view": one_view, "semi_hard": semi_hard}.items():
        if value and option not in takes[name]:
            those = ", ".join(each for each in LOSSES if option in takes[each])
            raise ValueError(f"{option}: loss {name!r} does not take it; those that do are {those}")
    options = {
        "temperature": temperature,
        "normalize": normalize,
        "one_view": one_view,
        "semi_hard": semi_hard,
        "margin": margin,
        "sigma": sigma,
    }
    options = {option: value for option, value in options.items() if option in takes[name]}

    def loss(z: jax.Array, label: jax.Array, gather: Gather = all_here) -> Result:
        labels = {"label": label} if "label" in takes[name] else {}
        return LOSSES[name](z, gather=gather, **labels, **options)

    return loss
