"""Looks up the published setting that is nearest to this run."""

import math
from collections.abc import Iterator
from typing import Any

from simclr_jax.doctor.findings import Finding, note, ok
from simclr_jax.doctor.plan import Plan
from simclr_jax.evaluate.published import FIGURES

ROWS = {
    "sgd": "linear top-1",
    "knn_200": "kNN top-1 (k = 200)",
    "finetune_0.01": "top-1, fine-tuned with 1 % of the labels",
    "finetune_0.1": "top-1, fine-tuned with 10 % of the labels",
}
WORDS = {"depth": "ResNet-{}", "batch": "batch {:,}", "epochs": "{:,.4g} epochs"}


def check(plan: Plan) -> Iterator[Finding]:
    """Reports the figures of the nearest setting, and the differences."""
    mine = setting(plan)
    found = nearest(mine)
    if plan.config.task != "pretrain":
        yield note(f"published figures are those of pretraining, not of task {plan.config.task}")
    elif found is None:
        yield note(f"nothing is published for {mine['source']}: compare with the untrained encoder")
    else:
        must, percents, by = found
        told = ", ".join(f"{value:g} % {ROWS.get(row, row)}" for row, value in percents.items())
        where = ", ".join(words.format(must[field]) for field, words in WORDS.items() if field in must)
        line = f"nearest published: {told} ({by}: {where})"
        differing = "; ".join(differences(mine, must))
        yield note(f"{line}; here: {differing}") if differing else ok(f"{line}; the same setting")


def setting(plan: Plan) -> dict[str, Any]:
    """The features by which settings are compared."""
    config = plan.config
    model, batch = config.model, config.train.batch_size
    plain = model.encoder == "resnet" and model.width == 1 and not model.sk_ratio
    epochs = plan.steps * batch / plan.train.size
    return {
        "source": config.data.source,
        "depth": model.depth if plain else None,
        "batch": batch,
        "epochs": round(epochs) if epochs >= 1 else epochs,
    }


def nearest(mine: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], str] | None:
    """The published setting on the same images with the least distance; None if there is none."""
    same = [figure for figure in FIGURES if figure[0]["source"] == mine["source"]]
    return min(same, key=lambda figure: distance(mine, figure[0]), default=None)


def distance(mine: dict[str, Any], must: dict[str, Any]) -> float:
    """Doublings between two settings; another depth counts as four."""
    far = 0.0 if mine["depth"] == must["depth"] else 4.0
    for field in ("batch", "epochs"):
        if field in must:
            far += abs(math.log2(mine[field] / must[field]))
    return far


def differences(mine: dict[str, Any], must: dict[str, Any]) -> list[str]:
    """The differences of this run, as text."""
    found = []
    for field, words in WORDS.items():
        if field in must and mine[field] != must[field]:
            found.append(words.format(mine[field]) if mine[field] is not None else "another encoder")
    return found
