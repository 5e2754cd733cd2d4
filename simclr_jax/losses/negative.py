"""The objectives that choose, weigh or move negatives: `debiased`, `hcl`, `adversarial`, `fnc`."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax

from simclr_jax.losses.adversarial import adversarial
from simclr_jax.losses.contrast import gather_over, two_views
from simclr_jax.losses.contrastive import Result
from simclr_jax.losses.false_negatives import fnc
from simclr_jax.losses.hard import debiased, hcl
from simclr_jax.losses.objective import Objective, Sizes, of_outputs

LOSSES = {"debiased": debiased, "hcl": hcl, "adversarial": adversarial, "fnc": fnc}


def create(name: str, options: Mapping[str, Any], sizes: Sizes) -> Objective:
    """The objective `name`: a loss of projections `[n, 2, d]`, times `options["scale"]`.

    The loss takes its own fields, `options[name]`, and of the common ones those that its docstring names.
    """
    two_views(name, sizes)
    loss_of, gather = LOSSES[name], gather_over(sizes.mesh)
    takes = inspect.signature(loss_of).parameters
    common = {field: options[field] for field in ("normalize", "one_view") if field in takes}
    how = {**common, **options[name], "gather": gather}

    def loss(outputs: Any, batch: Any, step: jax.Array) -> Result:
        value, metrics = loss_of(outputs["projection"], options["temperature"], **how)
        return value * options["scale"], metrics

    return of_outputs(loss, "projection")
