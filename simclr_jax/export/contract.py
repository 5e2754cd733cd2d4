"""What a format takes and gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


class Options(NamedTuple):
    """How to write.

    Attributes:
      platforms: that a StableHLO program is to run on.
    """

    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")


class Written(NamedTuple):
    """What a format wrote.

    Attributes:
      files: the artefact first, then what stands beside it.
      run: uint8 images `[n, h, w, c]` to {output: [n, d] float32}, by the artefact in its own runtime.
      notes: more for the JSON beside the artefact: "versions", "expires" and the like.
    """

    files: list[Path]
    run: Runner
    notes: dict[str, Any]
