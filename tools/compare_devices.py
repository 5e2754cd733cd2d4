"""Draws how far the losses of one run drift apart on 1 and 8 devices, in float32 and in float64.

    python tools/compare_devices.py --out=docs/devices.png [--steps=100]

Sums over devices round in another order: in float32 the difference grows with the steps, as between any
two kinds of hardware; in float64 it stays at rounding, which shows that nothing else differs.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import sys
import tempfile

import jax
import numpy as np
from absl import app, flags
from etils import epath

from simclr_jax import figures, metrics, paths, train
from simclr_jax.config import default, duration

OUT = flags.DEFINE_string("out", "docs/devices.png", "the figure")
STEPS = flags.DEFINE_integer("steps", 100, "steps to run", lower_bound=2)


def small_config(dtype: str, devices: int):
    """The quickstart's data and optimiser with a smaller model and batch."""
    c = default()
    c.data.source = "builtin:mnist5k"
    c.data.image_size, c.data.channels = 28, 1
    c.augment.flip = c.augment.jitter = 0.0
    c.model.encoder, c.model.width, c.model.dtype = "cnn", 0.25, dtype
    c.loss.temperature = 0.2
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.scaling = "adamw", 1e-2, "none"
    c.optimizer.warmup = duration(steps=10)
    c.train.steps, c.train.batch_size = STEPS.value, 32
    c.mesh.devices = devices
    c.log.every = duration(steps=1)
    c.log.tensorboard = c.eval.final = c.eval.figures = False
    c.eval.every = c.checkpoint.every = duration()
    return c


def losses(dtype: str, devices: int) -> np.ndarray:
    """The loss of every step, `[steps]`."""
    with tempfile.TemporaryDirectory() as workdir, jax.enable_x64(dtype == "float64"):
        train.run(small_config(dtype, devices), workdir)
        return np.array([row["loss"] for row in metrics.read_rows(workdir)])


def main(argv: list[str]) -> None:
    """Runs the four and draws."""
    del argv
    out, found = paths.local(OUT.value, "--out"), {}
    for dtype in ("float32", "float64"):
        one, eight = found[dtype] = losses(dtype, 1), losses(dtype, 8)
        print(f"{dtype}: largest relative difference of the loss {np.abs(one / eight - 1).max():.2g}")
    if not figures.attempt(print, out, draw, found):
        sys.exit(1)


def draw(path: epath.Path, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The losses of {dtype: (on 1 device, on 8)}, and how far apart they are."""
    figure = figures.new(figsize=(10, 3.6))
    curves, drift = figure.subplots(1, 2)
    for (dtype, (one, eight)), colour in zip(found.items(), (figures.ORANGE, figures.BLUE), strict=True):
        step = np.arange(1, len(one) + 1)
        curves.plot(step, one, color=colour, label=f"{dtype}, 1 device")
        curves.plot(step, eight, ":", color=colour, label=f"{dtype}, 8 devices")
        drift.semilogy(step, np.maximum(np.abs(one / eight - 1), 1e-17), color=colour, label=dtype)
    curves.set(title="loss", xlabel="step")
    drift.set(title="relative difference, 1 against 8 devices", xlabel="step")
    for axes in (curves, drift):
        axes.legend(frameon=False)
        axes.grid(color="#dddddd")
    figures.save(figure, path)


if __name__ == "__main__":
    app.run(main)
