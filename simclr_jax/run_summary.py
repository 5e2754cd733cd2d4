"""What summary.json says of a run, and what is printed at its end."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any, cast

import jax
from etils import epath

from simclr_jax.results import Row, table
from simclr_jax.text import with_interval

FILE = "summary.json"
PACKAGES = (
    "simclr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
    "tensorflow", "tensorflow-cpu", "tensorflow-datasets", "array_record",
)  # fmt: skip


def show(summary: Mapping[str, Any], workdir: epath.Path) -> None:
    """Prints the table, and what lies in the workdir."""
    lines = table([Row.of(row) for row in summary.get("rows", ())])
    lines = lines or restored(summary.get("test", {}))
    lines = lines or ["No scores: that takes labels, a test split and config.eval.final=True."]
    print("\n".join(["", *lines, "", str(workdir)]))
    for path in sorted(workdir.iterdir()):
        inside = ", ".join(sorted(child.name for child in path.iterdir())) if path.is_dir() else ""
        print(f"  {path.name}/  {inside}" if inside else f"  {path.name}")
    if names := summary["unreadable_files"]["names"]:
        print(f"{len(names)} unreadable files were replaced: {', '.join(names[:5])}")
    if count := summary["files_read_by_pillow"]:
        print(f"{count} files were read by Pillow, as TensorFlow could not")


def restored(test: Mapping[str, Any]) -> list[str]:
    """How well a run of task restore did on test images, with 95 % intervals; [] of other runs."""
    if "psnr_gain" not in test:
        return []

    def told(name: str, style: str) -> str:
        there = (name + end for end in ("", "_low", "_high") if name + end in test)  # few images: no interval
        return with_interval([test[each] for each in there], style)

    gain = f"{told('psnr_gain', '+.2f')} above the corrupted ones"
    return [
        f"central crops of {test['images']:,} test images: PSNR {told('psnr', '.2f')} dB, {gain}; "
        f"SSIM {told('ssim', '.3f')}"
    ]


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
