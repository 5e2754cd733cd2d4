"""Lengths and periods of a run, in steps."""

import math

from ml_collections import ConfigDict


def duration(*, epochs: float = 0.0, steps: int = 0, examples: int = 0) -> ConfigDict:
    """A length or a period of training. The finest unit set wins: steps, then examples, then epochs.

    So `--config.train.steps=10` shortens any run, whatever unit its config file uses. All zero means
    never.
    """
    return ConfigDict({"epochs": float(epochs), "steps": steps, "examples": examples})


def count_steps(node: ConfigDict, examples: int, batch: int) -> int:
    """Steps in the duration `node`, for a training set of `examples` images and `batch` a step."""
    if node.steps:
        return node.steps
    if node.examples:
        return math.ceil(node.examples / batch)
    return round(node.epochs * examples // batch) if node.epochs else 0


def every_steps(node: ConfigDict, examples: int, batch: int) -> int:
    """Steps in the period `node`: an epoch is a whole number of batches; 0 means never."""
    if node.steps or node.examples or not node.epochs:
        return count_steps(node, examples, batch)
    return max(1, round(node.epochs * (examples // batch)))


def total_steps(config: ConfigDict, examples: int) -> int:
    """Steps of the whole run: n·epochs // batch + 1 for epochs, as the original counts them."""
    by_epochs = not (config.train.steps or config.train.examples)
    return count_steps(config.train, examples, config.train.batch_size) + by_epochs


def microbatches(config: ConfigDict) -> int:
    """Number of microbatches; only one has its activations in memory at a time."""
    return config.train.batch_size // (config.train.microbatch or config.train.batch_size)
