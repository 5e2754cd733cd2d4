"""What summary.json says of a run, and the table of results that ends it."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any, cast

import jax
from etils import epath

FILE = "summary.json"
WHO = {"simclr": "SimCLR", "untrained": "untrained encoder", "raw_pixels": "raw pixels"}
METRICS = {
    "linear_100": "linear, 100 labels",
    "linear_1000": "linear, 1,000 labels",
    "linear_all": "linear, all labels",
    "knn": "kNN, all labels",
}
# Scores that count every class alike, however rare; `measures.ranking` makes them.
ALIKE = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
}
PACKAGES = (
    "simclr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
    "tensorflow", "tensorflow-cpu", "tensorflow-datasets", "array_record",
)  # fmt: skip


def show(summary: Mapping[str, Any], workdir: epath.Path) -> None:
    """Prints the table, and what lies in the workdir."""
    print(f"\n{table(summary)}\n\n{workdir}")
    for path in sorted(workdir.iterdir()):
        inside = ", ".join(sorted(child.name for child in path.iterdir())) if path.is_dir() else ""
        print(f"  {path.name}/  {inside}" if inside else f"  {path.name}")
    if names := summary["unreadable_files"]["names"]:
        print(f"{len(names)} unreadable files were replaced: {', '.join(names[:5])}")
    if count := summary["files_read_by_pillow"]:
        print(f"{count} files were read by Pillow, as TensorFlow could not")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def environment() -> dict[str, Any]:
    """Versions, devices and the settings that can change a result."""
    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    flags = cast(Any, jax.config)
    return {
        "versions": versions,
        "device": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "flags": {
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
            "jax_enable_x64": flags.jax_enable_x64,
            "jax_default_matmul_precision": flags.jax_default_matmul_precision,
            "jax_threefry_partitionable": flags.jax_threefry_partitionable,
        },
    }


def table(summary: Mapping[str, Any]) -> str:
    """The scores as text: a row a metric, a column a contender, ± one standard error."""
    scores, errors = summary.get("scores", {}), summary.get("standard_errors", {})
    if test := summary.get("test"):
        cells = [
            f"top-{k} {100 * test[f'top{k}']:.1f} ± {100 * test[f'top{k}_standard_error']:.1f}"
            for k in (1, 5)
            if f"top{k}" in test
        ]
        if uneven(test.get("top1"), test.get("balanced_accuracy")):
            cells += [f"{ALIKE[name]} {figure(name, test[name])}" for name in ALIKE if name in test]
        return f"test, {test['images']:,} images, %:  " + "  ".join(cells)
    if not scores:
        return "No scores: that takes labels, a test split and config.eval.final=True."
    scored = [who for who in WHO if any(who in by_contender for by_contender in scores.values())]
    lines = [f"{'top-1, %':<22}" + "".join(f"{WHO[who]:>20}" for who in scored)]
    for metric, title in METRICS.items():
        if metric in scores:
            cells = [f"{100 * scores[metric][who]:.1f} ± {100 * errors[metric][who]:.1f}" for who in scored]
            lines.append(f"{title:<22}" + "".join(f"{cell:>20}" for cell in cells))
            lines += _lines_alike(metric, scores, errors, scored)
    return "\n".join(lines)


def _lines_alike(metric: str, scores: Mapping, errors: Mapping, scored: list[str]) -> list[str]:
    """Below a metric whose accuracy hides something: what counts every class alike."""
    balanced = scores.get(f"{metric}_balanced_accuracy", {})
    if not any(uneven(scores[metric][who], balanced.get(who)) for who in scored):
        return []
    lines = []
    for name, title in ALIKE.items():
        values, spread = scores.get(f"{metric}_{name}", {}), errors.get(f"{metric}_{name}", {})
        cells = [figure(name, values.get(who), spread.get(who)) for who in scored]
        if any(cells):
            lines.append(f"{'  ' + title:<22}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def uneven(accuracy: float | None, balanced: float | None) -> bool:
    """Whether accuracy hides how rare classes fare: the balanced one is a point or more away."""
    return accuracy is not None and balanced is not None and abs(accuracy - balanced) >= 0.01


def figure(name: str, value: float | None, error: float | None = None) -> str:
    """A score of ALIKE as tables show it: balanced accuracy in %, the others as they are; "" for None."""
    if value is None:
        return ""
    percent = name == "balanced_accuracy"
    texts = [f"{100 * x:.1f}" if percent else f"{x:.3f}" for x in (value, error) if x is not None]
    return " ± ".join(texts)
