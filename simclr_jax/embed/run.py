"""Embeds images: each process writes parts, the first one puts them together."""

import contextlib
import csv
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from simclr_jax import distributed, encoder, hub, lock, paths, registry, sharding, storage
from simclr_jax.data import pipeline
from simclr_jax.data.labels import UNREADABLE
from simclr_jax.data.sources import Source, Stream
from simclr_jax.embed.images import Images, find
from simclr_jax.embed.parts import Parts, runs, shared, told_apart
from simclr_jax.errors import SimclrError, Stopped, StorageError
from simclr_jax.evaluate.subject import digest
from simclr_jax.feeds import Reader
from simclr_jax.index import table
from simclr_jax.index.table import Embeddings
from simclr_jax.measures import features
from simclr_jax.metrics import Progress
from simclr_jax.models import simclr
from simclr_jax.signals import Signals
from simclr_jax.text import printable
from simclr_jax.train import use_compile_cache

ROWS = 4096  # of a part
SECONDS = 30.0  # after which a part is written although it has fewer rows
SHOWN = 3  # names in an error


class Options(NamedTuple):
    """The options of the command that do not name a run."""

    images: str
    out: str
    endpoint: str = simclr.FEATURES[0]
    split: str = "train"  # of tfds:NAME


def embed(found: encoder.Encoder, workdir: str, options: Options) -> list[str]:
    """Writes the features of all images into `options.out`; returns lines for the user.

    The same call goes on where an earlier one was stopped or killed, with any number of processes.

    Args:
      found: the encoder of the run `workdir`.

    Raises:
      SimclrError: the run, the images or `out` do not fit; or, at the end, files could not be read.
      Stopped: SIGTERM came; what was done is kept.
    """
    config = found.config
    if not registry.of_images(config.data.source):
        raise SimclrError(f"--workdir={workdir}: is a run on a table, which embeds no images")
    out = table.checked(paths.local(options.out, "--out"))
    use_compile_cache(config.compile_cache)
    images = find(options.images, options.split, config.data)
    if distributed.first():
        for line in images.notes:
            print(line, flush=True)
    work = _Work(found, workdir, images, options, out)
    if sharding.from_first(lambda: work.plan) != work.plan:
        raise SimclrError(f"--images={options.images}: this process sees other images than the first one")
    if not sharding.from_first(work.finished):
        with _alone(work.parts.folder, options.out) if distributed.first() else contextlib.nullcontext():
            # Another command may have written the table before this one had the lock.
            gaps = sharding.from_first(lambda: None if work.finished() else work.begin())
            if gaps is not None:
                work.run([(begin, end) for begin, end in gaps])
                if distributed.first():
                    work.merge()
    return work.told() if distributed.first() else []


@contextlib.contextmanager
def _alone(folder: Path, out: str) -> Iterator[None]:
    """Holds the folder of parts: two commands would do the same rows."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.hold(folder))
        except StorageError:
            raise
        except SimclrError:
            raise SimclrError(
                f"--out={out}: another command is writing it; wait until it ends, or give another --out"
            ) from None
        yield


def of_encoder(found: encoder.Encoder, endpoint: str) -> dict[str, str]:
    """What the features of an image depend on beside the image: the encoder's part of a plan."""
    own = simclr.endpoint_name(found.model.encoder, endpoint)
    return {"encoder": digest(found.variables), "endpoint": own, "view": str(found.reader)}


class Rows(NamedTuple):
    """Rows `position [m]` of the images: `label [m]` and `values [m, d]`."""

    position: np.ndarray
    label: np.ndarray
    values: np.ndarray


class _Work:
    """What there is to do, and where it goes."""

    def __init__(self, found: encoder.Encoder, workdir: str, images: Images, options: Options, out: Path):
        self.encoder, self.images, self.options, self.out = found, images, options, out
        own = found.model.encoder
        endpoint = simclr.endpoint_name(own, options.endpoint)
        self.how = (found.model, found.reader, endpoint)
        spec = found.reader.spec()  # a mistake in the endpoint's name is told before anything is written
        views = jax.ShapeDtypeStruct((2, *spec.shape), np.float32)
        jax.eval_shape(functools.partial(_features, *self.how), found.variables, views)
        self.mesh = sharding.mesh_of(jax.local_devices())
        self.parts = Parts(out.with_name(out.name + ".parts"), images.source.size)
        self.unreadable = table.beside(out, "unreadable.csv")
        self.meta = {
            "workdir": workdir if hub.is_named(workdir) else paths.real(workdir),
            "step": found.step,
            "endpoint": options.endpoint,
            "images": images.root,
        }
        self.plan = {
            **of_encoder(found, endpoint),
            "files": str(images.source.reading),
            "images": [images.source.fingerprint, images.root, images.source.size],
        }

    def finished(self) -> bool:
        """Whether the result is there.

        Raises:
          SimclrError: something else is there.
        """
        if not self.out.exists():
            return False
        if told := told_apart(table.meta_of(self.out).get("plan", {}), self.plan):
            raise SimclrError(
                f"--out={self.options.out}: is there already, of another {told}; remove it, "
                "or give another --out"
            )
        shutil.rmtree(self.parts.folder, ignore_errors=True)  # of a command that was killed at its very end
        return True

    def begin(self) -> list[tuple[int, int]]:
        """The rows to do."""
        self.parts.begin(self.plan, self.options.out)
        return self.parts.gaps()

    def run(self, gaps: list[tuple[int, int]]) -> None:
        """Does this process's share of the gaps, and waits for the others'.

        Raises:
          Stopped: SIGTERM came.
        """
        ranges = shared(gaps, jax.process_index(), jax.process_count())
        left, total = sum(b - a for a, b in ranges), self.parts.n
        progress = Progress(total - left, total, enabled=distributed.first(), unit="image")
        pending: list[Rows] = []
        begin = time.monotonic()
        with Signals() as signals, contextlib.closing(progress):
            for rows in self._embedded(ranges):
                pending.append(rows)
                left -= len(rows.label)
                due = sum(len(r.label) for r in pending) >= ROWS or time.monotonic() - begin > SECONDS
                if due or signals.received or not left:
                    with signals.deferred():
                        self._write(pending)
                    pending, begin = [], time.monotonic()
                progress.step(total - left)
                self._stop_if(signals, left)
            while distributed.several() and self.parts.awaited():
                self._stop_if(signals, left)
                time.sleep(1)

    def _stop_if(self, signals: Signals, left: int) -> None:
        if signals.received:
            done = self.parts.n - left
            raise Stopped(f"stopped at {done} of {self.parts.n} images, saved; the same command goes on")

    def _embedded(self, ranges: list[tuple[int, int]]) -> Iterator[Rows]:
        """The rows of `ranges`, by batches."""
        variables = sharding.put_same(self.encoder.variables, sharding.replicated(self.mesh))
        encode = functools.partial(_features, *self.how, variables)
        positions, done = np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in ranges)]), 0
        for found in features.extracted(encode, self._batches(ranges, positions), self.mesh):
            rows = positions[done : done + len(found.labels)]
            done += len(rows)
            if not np.isfinite(found.features).all():
                worst = int(np.flatnonzero(~np.isfinite(found.features).all(axis=1))[0])
                raise SimclrError(
                    f"{self.images.name(int(rows[worst]))}: its features are no finite numbers: "
                    f"the encoder of {self.meta['workdir']} is broken, or computes in too few bits"
                )
            yield Rows(rows, found.labels, found.features)

    def _batches(self, ranges: list[tuple[int, int]], positions: np.ndarray) -> Iterator[pipeline.Batch]:
        """{example, label, mask}: the evaluation views as the run's evaluation sees them."""
        config, source = self.encoder.config, self.images.source
        view = {
            "size": config.data.image_size, "crop": config.eval.crop, "resize": config.eval.resize,
            "channels": config.data.channels, "threads": config.data.threads,
            "batch": -(-config.eval.batch_size // self.mesh.size) * self.mesh.size,
        }  # fmt: skip
        if isinstance(source, Source):
            if len(positions):
                yield from pipeline.eval_batches(source, index=positions, **view)
            return
        for begin, end in ranges:
            rest = dataclasses.replace(source, open=functools.partial(_opened_at, source, begin))
            yield from pipeline.eval_batches(rest, index=np.arange(end - begin), **view)

    def _write(self, rows: list[Rows]) -> None:
        """Writes parts, one for each stretch of rows without a gap."""
        position, label, values = (np.concatenate(x) for x in zip(*rows, strict=True))
        ledger = self.images.source.ledger
        if (label == UNREADABLE).any() and ledger.gone():
            raise SimclrError(
                f"{ledger.root}: this folder is gone; mount or restore it, and the same command goes on"
            )
        for a, b in runs(position):
            good = np.flatnonzero(label[a:b] != UNREADABLE) + a
            bad = [self.images.name(int(i)) for i in position[a:b][label[a:b] == UNREADABLE]]
            self.parts.write(
                int(position[a]),
                int(position[b - 1]) + 1,
                Embeddings(
                    [self.images.name(int(i)) for i in position[good]],
                    values[good],
                    [self.images.label(int(i)) for i in label[good]],
                    {"unreadable": {name: ledger.reasons.get(name, "cannot be decoded") for name in bad}},
                ),
            )

    def merge(self) -> None:
        """Writes the table and the list of files that could not be read; removes the parts."""
        if self.parts.gaps():
            raise SimclrError(f"{self.parts.folder}: files in it were removed; the same command goes on")
        bad = self.parts.unreadable()
        count = self.parts.n - len(bad)
        if not count:
            raise SimclrError(
                f"--images={self.options.images}: none of {self.parts.n} files can be read as an image "
                f"({next(iter(bad.values()))}); nothing is written"
            )
        with storage.writing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.unreadable.unlink(missing_ok=True)
            if bad:
                with table.replacing(self.unreadable, "w", encoding="utf-8", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows([("file", "why"), *sorted(bad.items())])
            parts = ((part.paths, part.label, part.features) for part in self.parts.read())
            dim = next(self.parts.read()).features.shape[1]
            table.write_parts(self.out, parts, count, dim, {**self.meta, "plan": self.plan})
        shutil.rmtree(self.parts.folder, ignore_errors=True)

    def told(self) -> list[str]:
        """Lines for the user.

        Raises:
          SimclrError: files could not be read.
        """
        bad = []
        if self.unreadable.exists():
            with self.unreadable.open(encoding="utf-8", newline="") as file:
                bad = list(csv.reader(file))[1:]
        n, dim = self.parts.n, table.meta_of(self.out)["dim"]
        line = f"{self.out}: {n - len(bad)} of {n} images, {dim} numbers each ({self.options.endpoint})"
        if not bad:
            return [line]
        print(line, flush=True)
        raise SimclrError(
            f"{len(bad)} of {n} files could not be read, {self.unreadable} says why: "
            f"{', '.join(printable(name) for name, _ in bad[:SHOWN])}{', ...' * (len(bad) > SHOWN)}; "
            f"the others are done; to embed them once they are mended, remove {self.out} first"
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(
    model: simclr.SimCLR, reader: Reader, endpoint: str, variables: Any, views: jax.Array
) -> jax.Array:
    """Evaluation views `[n, h, w, c]` in [0, 1] to features `[n, d]`; maps are averaged over their places.

    Raises:
      SimclrError: the encoder has no such endpoint.
    """
    own = model.encoder
    ends = simclr.endpoints(model, variables, reader.prepare(views, False, own.dtype))
    if endpoint not in ends:
        raise SimclrError(f"--endpoint={endpoint}: this encoder has {', '.join(ends)}")
    return simclr.read_endpoint(own, ends, endpoint)


def _opened_at(stream: Stream, begin: int, *_: Any) -> Any:
    """The records of a stream from `begin` on, in the order of its files."""
    return stream.open(None, 0, 1).skip(begin)
