"""The order of the examples: a pure function of (seed, step), so no checkpoint stores it.

It is plain NumPy, so that runs with and without TensorFlow read the same images in the same order.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation `[examples]` int64."""
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.random.Generator(philox).permutation(examples)


def step_examples(
    step: int, *, examples: int, batch: int, seed: int, process: int = 0, processes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """This process's rows of the batch that turns state `step` into `step + 1`.

    A batch never contains images of two epochs, so that no image is its own negative. An epoch leaves out
    the last `examples % batch` images of its order. The global batch does not depend on `processes`.

    Returns:
      (index [batch / processes] into the source, position [batch / processes] in the run), int64.
    """
    epoch, within = divmod(step, examples // batch)
    share = batch // processes
    rows = slice(process * share, (process + 1) * share)
    index = epoch_order(examples, seed, epoch)[within * batch : (within + 1) * batch]
    return index[rows], (step * batch + np.arange(batch))[rows]


def shares(index: np.ndarray, batch: int, process: int = 0, processes: int = 1) -> np.ndarray:
    """This process's rows `[batches, batch / processes]` of `index` in batches; -1 pads the last one."""
    padded = np.concatenate([index, np.full(-len(index) % batch, -1)]).reshape(-1, batch)
    share = batch // processes
    return padded[:, process * share : (process + 1) * share]
