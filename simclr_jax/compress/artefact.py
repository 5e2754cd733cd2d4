"""An ONNX artefact with what its JSON tells, and the images that it is calibrated and scored on."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from ml_collections import ConfigDict

from simclr_jax import paths
from simclr_jax.config import default, load_config
from simclr_jax.data import formats, memory
from simclr_jax.data.scan import find
from simclr_jax.data.sources import Source, Stream
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.export.contract import Runner
from simclr_jax.export.run import native_side
from simclr_jax.feeds import kind, load_splits
from simclr_jax.feeds.images import ImageReader
from simclr_jax.index.artefact import described


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A file that `simclr export --format=onnx` or this command wrote.

    Attributes:
      about: the JSON beside it.
    """

    path: Path
    about: dict[str, Any]

    @functools.cached_property
    def run(self) -> Runner:
        """`session` on all cores."""
        return self.session()

    def session(self, threads: int = 0) -> Runner:
        """uint8 images `[n, h, w, c]` to {output: `[n, d]`}, in onnxruntime on the CPU; 0 threads: all."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        made = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in made.get_outputs()]
        return lambda images: dict(zip(names, made.run(names, {"images": images}), strict=True))

    @property
    def size(self) -> int:
        """Bytes of the model, and of the file with its weights where there is one."""
        beside = self.path.with_name(f"{self.path.name}.data")
        return self.path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)

    def config(self) -> ConfigDict:
        """That of its run if it is still there; else the default with what the JSON says of images."""
        try:
            return load_config(self.about["run"]["workdir"])[0]
        except SimclrError:
            config = default()
            with config.unlocked():
                config.data.update({k: v for k, v in self.about["run"]["data"].items() if k != "source"})
            return config


def read(where: str, option: str = "--artefact") -> Artefact:
    """The artefact at a path.

    Raises:
      SimclrError: it is not there, is no ONNX, is damaged, or its JSON is missing or of another kind.
    """
    path = Path(paths.local(where, option))
    if not path.is_file():
        raise SimclrError(f"{option}={where}: no such file; simclr export --format=onnx writes one")
    about = described(path)
    if not (about["run"].get("data") and about["run"].get("workdir")):
        raise SimclrError(f"{option}={where}: its JSON does not name its run; export the run itself")
    return Artefact(path, about)


# ---- images -------------------------------------------------------------------------------------------


def from_folder(where: str, artefact: Artefact, most: int) -> list[np.ndarray]:
    """Up to `most` image files below a folder, spread over it, `[h, w, c]` uint8 each.

    Raises:
      SimclrError: there are none, or one cannot be read.
    """
    channels, reading = artefact.about["input"]["channels"], formats.Reading.of(**artefact.config().data)
    if channels not in (1, 3):
        raise SimclrError(f"--images: files have 1 or 3 channels, the encoder takes {channels}")
    folder, names = find(where)
    images = []
    for name in names[:: -(-len(names) // most)]:
        try:
            images.append(formats.read_file(folder / name, reading, channels))
        except formats.UnreadableError as error:
            raise SimclrError(f"{folder / name}: cannot be read ({error}); take it out") from None
    return images


def splits_of(artefact: Artefact, workdir: str = "") -> tuple[ConfigDict, Splits]:
    """(config, splits) of the images that an artefact's run, or the run `workdir`, was trained on.

    Raises:
      SimclrError: the run or its images are no longer there.
    """
    config, data = load_config(workdir or artefact.about["run"]["workdir"])
    return config, load_splits(config, data)


def from_training(artefact: Artefact, most: int) -> list[np.ndarray]:
    """A fixed sample of up to `most` images that the run was trained on, `[h, w, c]` uint8 each.

    Raises:
      SimclrError: they are not there, or are read in sequence.
    """
    try:
        config, splits = splits_of(artefact)
    except SimclrError as error:
        raise SimclrError(f"{error}; or give images of the same kind by --images=DIR") from None
    train = splits.train
    if isinstance(train, Stream):
        raise SimclrError(f"{train.name}: is read in sequence; give images of the same kind by --images=DIR")
    rows = np.sort(np.random.default_rng(0).permutation(train.size)[:most])
    return list(whole(train.subset(rows), config)[0])


def whole(split: Source | Stream, config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """(images `[n, h, w, c]` uint8, labels `[n]`) of a split.

    Arrays are as they are. Files and records become squares that the evaluation view does not resize.
    """
    data = config.copy_and_resolve_references().data
    data.stored_size = native_side(cast(ImageReader, kind(config).reader(config, {})))
    held = memory.hold(Splits(split, None), data).train
    assert isinstance(held, Source)
    return held.fetch(np.arange(held.size))
