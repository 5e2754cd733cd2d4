"""Every part at a tiny size, within a minute: that they run, no figures to keep."""

from pathlib import Path

from ml_collections import ConfigDict

from bench import augment, input, knn, linear_sweep, loss, scaling, step

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def measure(config: ConfigDict) -> dict:
    """The parts' results."""
    small, digits = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    small.data.image_size = 32
    digits.update(
        {"data": {"image_size": 28, "channels": 1}, "model": {"encoder": "cnn"}, "train": {"batch_size": 64}}
    )
    command = [f"--config={QUICKSTART}"]
    parts = (
        (step, step.measure(digits, steps=3)),
        (loss, loss.measure(small, sizes=(128,), steps=2)),
        (augment, augment.measure(small, images=8, steps=2)),
        (input, input.measure(small, images=32, batch=8, steps=1)),
        (knn, knn.measure(small, bank=2000, queries=128, dim=64, k=20, classes=(10,), steps=2)),
        (linear_sweep, linear_sweep.measure(digits, steps=2)),
        (scaling, scaling.measure(digits, command=command, devices=(1, 2))),
    )
    for module, result in parts:
        module.show(result)
    return {"part": "smoke", "parts": [result for _, result in parts]}


def show(result: dict) -> None:
    """The parts' tables are out."""
    print(f"\n{len(result['parts'])} parts ran")
