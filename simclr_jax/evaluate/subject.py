"""What is evaluated: a run's encoder, the images, and their features, extracted once and kept."""

import contextlib
import functools
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed, figures, files, registry, sharding
from simclr_jax.config import flatten, lies_in
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import create_feed, hold
from simclr_jax.measures.features import Features, extract
from simclr_jax.models import simclr
from simclr_jax.protocols.scores import Contender
from simclr_jax.results import WHO
from simclr_jax.tasks.extractor import RAW_EXAMPLES, Extractor, groups_of, labelled, sample
from simclr_jax.version import __version__

IN_MEMORY = 2 << 30  # bytes; larger features are read again when they are needed
# Fields that decide nothing here.
IDLE = ("checkpoint", "compile_cache", "data.data_dir", "data.download", "data.max_unreadable",
        "data.threads", "log", "mesh", "eval.every", "eval.batch_size", "eval.figures", "eval.final",
        "train.steps_per_call")  # fmt: skip


class Subject:
    """The encoder of a run beside what it is compared with, on the images of `config`.

    Args:
      workdir: of the run; `workdir/eval` keeps all that is found.
      config: the run's, with what the user wants otherwise.
      splits: the images.
      changed: what makes it another subject than the run's own, which gets a folder of its own.
      trained: the config that the run was trained by.

    Attributes:
      folder: where results are kept.
      weights: {kernel [d, classes], bias} of the classifier by L-BFGS, once there is one.
      classes: names of the classes, () without labels.
      key: changes with the encoder, the images, or what the config says of both.
      sets: the labelled images of the protocol transfer, by source.
      again: the protocol is to be run as if for the first time.
      before: what it found by other options.
      results: what other protocols found so far, as JSON.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: ConfigDict,
        encoder: Encoder,
        splits: Splits,
        mesh: Mesh,
        changed: Sequence[str] = (),
        trained: ConfigDict | None = None,
    ):
        splits = hold(config, splits)
        self.workdir, self.folder = workdir, folder_of(workdir, changed)
        self.trained = trained or config
        self.sets: dict[str, Any] = {}
        self.again, self.before = False, {}
        self.results: dict[str, Any] = {}
        self.config, self.encoder, self.splits, self.mesh = config, encoder, splits, mesh
        self.classes = splits.train.classes
        self.feed = create_feed(config, splits, mesh, views=1)
        self.first = distributed.first()
        self.weights: dict[str, np.ndarray] | None = None
        self._digest = digest(encoder.variables)
        self._kept: dict[str, Features] = {}
        self._variables: dict[str, Any] = {}
        self._gallery: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._gallery_h: dict[tuple[int, str], np.ndarray] = {}
        self.key = self.key_of(_of_subject(config), *identity(splits))

    def key_of(self, *parts: Any) -> str:
        """A short name for what decides a result, beside the encoder."""
        text = json.dumps([__version__, self._digest, *parts], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def run_folder(self, name: str, config: ConfigDict) -> epath.Path:
        """Where a run of `config`, part of a protocol, is kept: another folder for whatever differs."""
        key = self.key_of(_decisive(config), *identity(self.splits))
        folder = self.folder / "runs" / f"{name}-{key}"
        if self.again:
            self._remove(folder)
        return folder

    def forget_features(self) -> None:
        """Has all features extracted again."""
        self._kept.clear()
        self._remove(self.folder / "features")

    def _remove(self, folder: epath.Path) -> None:
        if self.first and folder.exists():
            folder.rmtree()
        sharding.barrier()  # nobody goes on before it is gone

    # ---- what can be done ------------------------------------------------------------------------

    def unscorable(self, look: bool = True) -> str:
        """Why no classifier can be scored; empty where one can. Some reasons take a `look` at all images."""
        train, test = self.splits
        if not train.classes:
            return f"{train.name} has no labels"
        if test is None:
            return (
                "there is no test split: name one by --config.data.test_split, or raise --config.data.holdout"
            )
        if not test.classes:
            return f"{test.name} has no labels"
        if not look:
            return ""
        # -1 is no class, and a class without images teaches nothing.
        if len(np.unique(self.labelled("simclr", "train").labels)) < 2:
            return f"{train.name} has labelled images of one class only: nothing to tell apart"
        if not len(self.labelled("simclr", "test").labels):
            return f"{test.name} has no labelled image"
        return ""

    def lacks(self, needs: Sequence[str]) -> str:
        """Which of "pictures" and "random access" a protocol needs in vain; empty where none."""
        train = self.splits.train
        if "pictures" in needs and not self.feed.pictures:
            return f"{train.name} holds no pictures"
        if "random access" in needs and not isinstance(train, Source):
            return f"{train.name} is read in sequence: to show single images prepare it as ArrayRecord"
        return ""

    @property
    def shown(self) -> Source:
        """The split that pictures are drawn from: test where there is one."""
        return cast(Source, self.splits.test or self.splits.train)  # by `lacks`

    def batch_size(self, examples: int) -> int:
        """That of the run, or what so few images allow: the same on one device and on eight.

        Raises:
          SimclrError: there are fewer images than devices.
        """
        devices, batch = self.mesh.size, self.config.train.batch_size
        if batch <= examples:
            return batch
        if examples < devices:
            raise SimclrError(f"{examples} images for {devices} devices: take fewer, --config.mesh.devices=1")
        unit = math.lcm(8, devices) if examples >= math.lcm(8, devices) else devices
        return examples // unit * unit

    # ---- features --------------------------------------------------------------------------------

    def features(self, who: str, part: str, index: np.ndarray | None = None) -> Features:
        """Of every image of a split, or of those in `index`: {encoder, projection, logits}, each `[n, d]`.

        "encoder" is `config.eval.endpoint`; projection of the run's encoder, where it has one, and logits of
        test images, where it has a classifier.
        """
        split = getattr(self.splits, part)
        if index is None:
            index = self._index(who, part)
        key = self.key_of(
            who, part, split.fingerprint, split.name, None if index is None else digest(index),
            self.config.data.to_dict(), self.config.eval.crop, self.config.eval.resize,
            self.config.eval.endpoint, self.config.model.dtype, self.config.seed, self.config.augment.device,
        )  # fmt: skip
        if key in self._kept:
            return self._kept[key]
        path = self.folder / "features" / f"{who}-{part}-{key}.npz"
        found = self._read(path) or self._extract(who, part, index, path)
        if sum(x.nbytes for x in found.features.values()) < IN_MEMORY:
            self._kept[key] = found
        return found

    def train_labels(self) -> np.ndarray:
        """Of every training image, -1 for none; from its features where all have some."""
        found = self.features("simclr", "train").labels
        return found if len(found) == self.splits.train.size else cast(Source, self.splits.train).labels()

    def rows(self, who: str, part: str) -> np.ndarray:
        """The numbers `[n]` in the split of the images that `features` holds."""
        index = self._index(who, part)
        return np.arange(getattr(self.splits, part).size) if index is None else index

    def _index(self, who: str, part: str) -> np.ndarray | None:
        return sample(getattr(self.splits, part), self._limit(who) if part == "train" else 0)

    def labelled(self, who: str, part: str, name: str = "encoder") -> Features:
        """One of the features, of the images whose label is known."""
        found = self.features(who, part)
        one = Features(found.features[name], found.labels)
        return one if (one.labels >= 0).all() else labelled(one)

    def groups(self, who: str) -> np.ndarray | None:
        """The group of each training image that `labelled` gives; None where there are no groups."""
        return groups_of(self.splits.train, self._index(who, "train"), self.features(who, "train").labels)

    def contenders(self) -> Iterator[Contender]:
        """The features of each, one by one."""
        for who in WHO:
            train, test = (self.labelled(who, part) for part in ("train", "test"))
            yield Contender(who, train, test, self.groups(who))

    def _limit(self, who: str) -> int:
        linear, knn = self.config.eval.linear, self.config.eval.knn
        limit = max(knn.bank, linear.examples) if linear.examples else 0
        return RAW_EXAMPLES if who == "raw_pixels" and not 0 < limit < RAW_EXAMPLES else limit

    def _read(self, path: epath.Path) -> Features | None:
        arrays = {}
        missing_or_damaged = contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile)
        with missing_or_damaged, path.open("rb") as file:
            arrays = dict(np.load(file))
        if not sharding.agreed(len(arrays)) or not arrays:
            return None
        return Features({k: v for k, v in arrays.items() if k != "labels"}, arrays["labels"])

    def _extract(self, who: str, part: str, index: np.ndarray | None, path: epath.Path) -> Features:
        split = getattr(self.splits, part)
        if who == "raw_pixels":
            found = self._extractor.raw_pixels(split, index)
            found = found._replace(features={"encoder": found.features})
        else:
            found = self._extractor(self.variables(who), split, index)
            wanted = ["encoder"] + ["projection"] * (who == "simclr") + ["logits"] * (part == "test")
            names = {name: end for name, end in self._endpoints.items() if name in wanted}
            found = found._replace(features={name: found.features[end] for name, end in names.items()})
        self.keep(path, labels=found.labels, **found.features)
        return found

    def keep(self, path: epath.Path, **arrays: np.ndarray) -> None:
        """Writes an .npz file as a whole, by the first process."""
        if not self.first:
            return
        needs = sum(array.nbytes for array in arrays.values())
        named: dict[str, Any] = dict(arrays)
        with files.replacing(path, needs) as half, half.open("wb") as file:
            np.savez(file, **named)

    @functools.cached_property
    def _endpoints(self) -> dict[str, str]:
        """Our names of features, and the encoder's."""
        spec = self.feed.spec()
        sample = jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype)
        model, variables = self.encoder.model, self.encoder.variables
        ends = jax.eval_shape(functools.partial(simclr.endpoints, model), variables, sample)
        names = {"encoder": simclr.endpoint_name(model.encoder, self.config.eval.endpoint)}
        if names["encoder"] not in ends:
            raise SimclrError(f"config.eval.endpoint={names['encoder']!r}: there are {', '.join(ends)}")
        has_head = "projection_1" in ends  # without one the projection is h itself
        wanted = (("projection", has_head), ("logits", True))
        return names | {name: name for name, wants in wanted if wants and name in ends}

    @functools.cached_property
    def _extractor(self) -> Extractor:
        return Extractor(self.feed, self.encoder.model, tuple(dict.fromkeys(self._endpoints.values())))

    def variables(self, who: str) -> dict[str, Any]:
        """On the mesh: the run's, or those it started from."""
        if who not in self._variables:
            self._variables[who] = self._put_variables(who)
        return self._variables[who]

    def _put_variables(self, who: str) -> dict[str, Any]:
        everywhere = sharding.replicated(self.mesh)
        if who == "simclr":
            return sharding.put_same(self.encoder.variables, everywhere)

        def fresh(key):
            return simclr.init(self.encoder.model, key, simclr.sample(self.feed.spec()))

        return jax.jit(fresh, out_shardings=everywhere)(jax.random.key(self.config.seed))

    # ---- pictures --------------------------------------------------------------------------------

    def gallery(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """(evaluation views `[n, h, w, c]` in [0, 1], labels `[n]`) of a fixed sample of `shown`."""
        if limit not in self._gallery:
            index = sample(self.shown, limit)
            found = extract(self.feed.see, self.feed.every(self.shown, index), self.mesh)
            self._gallery = {limit: (found.features, found.labels)}  # one of them, as they can be large
        return self._gallery[limit]

    def h_of_gallery(self, limit: int, who: str = "simclr") -> np.ndarray:
        """Features `[n, d]` of `gallery(limit)`; computed once, as several protocols take them."""
        if (limit, who) not in self._gallery_h:
            self._gallery_h[limit, who] = self.h_of(self.gallery(limit)[0], who)
        return self._gallery_h[limit, who]

    def pictures(self, split: Source, index: np.ndarray) -> np.ndarray:
        """Evaluation views of the images in `index`, `[n, h, w, c]`."""
        return extract(self.feed.see, self.feed.every(split, np.asarray(index)), self.mesh).features

    def h(self, variables: Any, views: jax.Array) -> jax.Array:
        """Features `[n, d]` of evaluation views, differentiable."""
        found = simclr.read_endpoint(
            self.encoder.model.encoder, self.endpoints(variables, views), self.config.eval.endpoint
        )
        return found.astype(jnp.float32)

    def over(self, function: Callable[..., Any], *arrays: np.ndarray, who: str = "simclr") -> Any:
        """`function(variables, *rows)` over the rows of all arrays, split over the mesh; NumPy everywhere.

        A function that has been through `jax.jit` is compiled once for all calls.
        """
        size, total = self.config.eval.batch_size, len(arrays[0])
        compiled, parts = jax.jit(function), []
        size = min(size, -(-total // self.mesh.size) * self.mesh.size)
        for begin in range(0, total, size):
            rows = [x[begin : begin + size] for x in arrays]
            count = len(rows[0])
            rows = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1)) for x in rows]
            placed = sharding.put_same(rows, sharding.by_batch(self.mesh))
            found = sharding.gather(compiled(self.variables(who), *placed))
            parts.append(jax.tree.map(lambda x: np.asarray(x)[:count], found))  # noqa: B023
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def h_of(self, views: np.ndarray, who: str = "simclr") -> np.ndarray:
        """Features `[n, d]` of evaluation views `[n, h, w, c]`."""
        return self.over(self._jitted_h, views, who=who)

    @functools.cached_property
    def _jitted_h(self) -> Callable[..., jax.Array]:
        return jax.jit(self.h)

    def endpoints(self, variables: Any, views: jax.Array) -> dict[str, jax.Array]:
        """All endpoints of evaluation views, differentiable."""
        return simclr.endpoints(self.encoder.model, variables, self.feed.prepare(views))

    def augmented(self, views: np.ndarray, seed: int = 1, **fields: Any) -> np.ndarray:
        """One augmentation of every evaluation view; `fields` in the place of those of `config.augment`."""

        def one(_: Any, x: jax.Array, position: jax.Array) -> jax.Array:
            return self.feed.change(x, position, seed, **fields)

        return self.over(one, views, np.arange(len(views), dtype=np.uint32))

    def draw(self, name: str, figure: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Draws `figures/NAME`, by the first process; a figure that fails says so and costs nothing else."""
        if self.first:
            figures.attempt(print, self.folder / "figures" / name, figure, *args, **kwargs)

    def predicted(self, name: str, labels: np.ndarray, **classes: np.ndarray) -> None:
        """Keeps the predicted classes `[n]` of the labelled test images, in order."""
        self.keep(self.folder / "predictions" / f"{name}.npz", labels=labels, **classes)

    def write(self, name: str, value: Any) -> None:
        """A JSON file in the folder, by the first process."""
        if self.first:
            compact = len(self.classes) > 100  # whose confusions would fill a line each
            files.write(self.folder / name, json.dumps(value, indent=None if compact else 2) + "\n")


def identity(splits: Splits) -> list[str]:
    """Changes with the images and with the groups that hold-outs keep together."""
    groups = getattr(splits.train, "groups", None)
    return [s.fingerprint for s in splits if s] + ([] if groups is None else [digest(groups)])


def folder_of(workdir: epath.Path, changed: Sequence[str]) -> epath.Path:
    """Where the results of a subject are kept: `workdir/eval`, or below it where something `changed`."""
    if not changed:
        return workdir / "eval"
    readable = re.sub(r"[^\w.=,-]+", "_", ",".join(changed))
    return workdir / "eval" / f"{readable[:60]}-{hashlib.sha256(repr(changed).encode()).hexdigest()[:6]}"


def differences(own: ConfigDict, other: ConfigDict) -> list[str]:
    """`field=value` of what makes the subject of `other` another than that of the run's `own` config."""
    mine, theirs = _of_subject(own), _of_subject(other)
    return [f"{field}={value}" for field, value in theirs.items() if mine[field] != value]


def _of_subject(config: ConfigDict) -> dict[str, Any]:
    """The fields that make a subject: all decisive ones but those of single protocols."""
    own = ("eval.crop", "eval.resize", "eval.endpoint", "eval.knn.bank", "eval.linear.examples")
    return {f: v for f, v in _decisive(config).items() if f in own or not f.startswith("eval.")}


def _decisive(config: ConfigDict) -> dict[str, Any]:
    """The fields that can change a result."""
    flat = flatten(config)
    idle = (*IDLE, *registry.idle(flat))  # of encoders and feeds that are not chosen, whichever there are
    return {field: value for field, value in flat.items() if not lies_in(field, idle)}


def digest(tree: Any) -> str:
    """A short name for the bytes of every array."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()[:16]
