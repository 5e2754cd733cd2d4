"""index → read → views → batch, in tf.data. Every batch is a function of the step."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from simclr_jax.data import order
from simclr_jax.data.decode import decode, to_channels
from simclr_jax.data.host_augment import Crops, center_view, random_crop, random_view, view_key
from simclr_jax.data.sources import AHEAD, Source, Stream
from simclr_jax.data.tf import load
from simclr_jax.errors import UnreadableImagesError

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source | Stream,
    *,
    start: int,
    stop: int,
    batch: int,
    seed: int,
    kinds: Sequence[Crops],
    channels: int = 3,
    dtype: str = "float32",
    threads: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """This process's share of the batches of steps `start` to `stop`.

    A batch is {the name of each of `kinds`: its views [n, count, size, size, c], float32 in [0, 1], or with
    dtype="uint8" cropped and flipped only, position [n] uint32 (step·batch + row, the key of the
    augmentation), label [n] int32 (-1: none), mask [n] bool}. (seed, p, v) key the view of number `v` of
    position `p`: every epoch has new views, and a resumed run has the same ones.

    For a Stream the order of the images also depends on the number of processes, and a start in mid-epoch
    reads and skips the images before it.
    """
    tf = load()
    make = random_crop if dtype == "uint8" else random_view

    def run(read, done):
        def example(payload, label, index, position):
            image, label, used = read(payload, label)
            image = to_channels(image, channels)
            views = {}
            for kind in kinds:
                keys = [view_key(seed, position, kind.first + view) for view in range(kind.count)]
                views[kind.name] = tf.stack([make(image, key, kind.size, kind.options) for key in keys])
            used = tf.where(used < 0, index, used)
            return {**views, "position": position, "label": label, "index": index, "used": used}

        if isinstance(source, Source):
            runs = [_random_access_rows(source, start + done, stop, batch, seed, process, processes)]
        else:
            runs = _stream_rows(source, start + done, stop, batch, seed, process, processes)
        for rows in runs:
            dataset = rows.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            dataset = dataset.batch(batch // processes, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
            for arrays in _run(dataset, source, threads):
                _ledger(source, arrays.pop("index"), arrays.pop("used"))
                arrays["position"] = arrays["position"].astype(np.uint32)
                arrays["mask"] = np.ones(len(arrays["label"]), bool)
                yield arrays

    yield from _going_on(source, run)


def eval_batches(
    source: Source | Stream,
    *,
    batch: int,
    size: int,
    crop: float,
    resize: str = "bicubic",
    channels: int = 3,
    index: np.ndarray | None = None,
    threads: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """This process's share of every example once, in order, without augmentation.

    A batch is {example [n, size, size, c] float32 in [0, 1], label [n], mask [n]}; the last one is filled
    up with zeros where mask is False, so that all have one shape on every process.

    Args:
      index: the examples wanted, in this order; None for all. Of a Stream only the first len(index).
    """
    tf = load()
    count, share = source.size if index is None else len(index), batch // processes
    if isinstance(source, Source):
        index = np.arange(source.size) if index is None else np.asarray(index)
        mine = order.shares(index, batch, process, processes).reshape(-1)
        mine = mine[mine >= 0]
        groups = np.array_split(mine, range(share, len(mine), share)) if len(mine) else []

    def run(read, done):
        if isinstance(source, Source):
            rows = _rows(source, ((i, np.zeros(len(i), np.int64)) for i in groups[done:]))
        else:
            rows = source.open(None, process, processes)
            if index is not None:
                rows = rows.take(count // processes + (process < count % processes))
            rows = rows.map(lambda data, label: (data, label, np.int64(0), np.int64(0)))

        def example(payload, label, index, _):
            image, label, used = read(payload, label)
            image = center_view(to_channels(image, channels), size, crop, resize)
            return {"example": image, "label": label, "index": index,
                    "used": tf.where(used < 0, index, used)}  # fmt: skip

        dataset = rows.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        yield from _run(dataset.batch(share).prefetch(tf.data.AUTOTUNE), source, threads)

    left = math.ceil(count / batch)
    if isinstance(source, Stream):  # the largest share decides
        left = math.ceil(math.ceil(count / processes) / share)
    for arrays in _going_on(source, run):
        _ledger(source, arrays.pop("index"), arrays.pop("used"))
        missing = share - len(arrays["label"])
        arrays["mask"] = np.arange(share) < share - missing
        yield {k: _pad(v, missing) if k != "mask" else v for k, v in arrays.items()}
        left -= 1
    for _ in range(left):  # another process still has rows
        image = np.zeros((share, size, size, channels), np.float32)
        yield {"example": image, "label": np.zeros(share, np.int32),
               "mask": np.zeros(share, bool)}  # fmt: skip


# ---- rows: (payload, label, index, position) of single examples -----------------------------------


def _rows(source: Source, groups: Iterator[tuple[np.ndarray, np.ndarray]]) -> Any:
    """A data set of examples from (index, position) groups; each group is fetched in one call."""
    tf = load()
    first = np.zeros(1, np.int64)
    payload, _ = source.fetch(first)
    dtype = tf.string if payload.dtype == object else tf.as_dtype(payload.dtype)
    vector = tf.TensorSpec([None], tf.int64)
    signature = (
        tf.TensorSpec([None, *payload.shape[1:]], dtype),
        tf.TensorSpec([None], tf.int32),
        vector,
        vector,
    )

    def generate():
        for index, position in groups:
            yield (*source.fetch(index), index, position)

    return tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()


def _random_access_rows(source, start, stop, batch, seed, process, processes) -> Any:
    def groups():
        for step in range(start, stop):
            yield order.step_examples(
                step,
                examples=source.size,
                batch=batch,
                seed=seed,
                process=process,
                processes=processes,
            )

    return _rows(source, groups())


def _stream_rows(source, start, stop, batch, seed, process, processes) -> Iterator[Any]:
    """A data set for each epoch: the files in a new order, then a shuffle buffer of encoded images."""
    tf = load()
    share = batch // processes
    # Shares of a split differ by one image, but no process may run out before the others.
    steps = min(source.size // batch, source.size // processes // share)
    for epoch in range(start // steps, -(-stop // steps)):
        first = max(start - epoch * steps, 0)
        last = min(stop - epoch * steps, steps)
        # The same on every process: the files are shuffled together, then shared out.
        epoch_seed = int(np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw() >> 33)
        rows = source.open(epoch_seed, process, processes).shuffle(source.buffer, seed=epoch_seed)
        rows = rows.take(last * share).skip(first * share)

        def number(i, row, epoch=epoch):
            position = (epoch * steps + i // share) * batch + process * share + i % share
            return (*row, np.int64(0), position)

        yield tf.data.Dataset.zip(tf.data.Dataset.range(first * share, last * share), rows).map(number)


def _going_on(source: Source | Stream, run: Callable[[Callable, int], Iterator[Batch]]) -> Iterator[Batch]:
    """The batches of `run(read, done)` after the first `done`.

    It uses the fast `read` until an example is unreadable, and `read_around` from that batch on.
    """
    if isinstance(source, Stream):
        yield from run(lambda data, label: (decode(data, source.reading), label, np.int64(-1)), 0)
        return
    done = 0
    for read in filter(None, (source.read, source.read_around)):
        try:
            for batch in run(read, done):
                yield batch
                done += 1
            return
        except UnreadableImagesError:
            if source.read_around in (None, read) or source.ledger.gone():
                raise


def _run(dataset: Any, source: Source | Stream, threads: int) -> Iterator[Batch]:
    tf = load()
    options = tf.data.Options()
    options.deterministic = True
    # A private thread pool, so that evaluation and other TensorFlow work do not slow it down.
    options.threading.private_threadpool_size = threads or os.cpu_count()
    # Looked up now: a generator may be closed at exit. An error that quotes a file's bytes is no text.
    failed = (tf.errors.OpError, UnicodeDecodeError)
    try:
        yield from dataset.with_options(options).as_numpy_iterator()
    except failed as error:
        if source.ledger.gone():
            problem = "its folder is gone: mount or restore it, and the same command goes on"
        elif "Dataset was empty" in str(error):
            tried = min(source.size, AHEAD)
            which = f"none of its {tried:,} files" if tried == source.size else f"{tried:,} files in a row"
            why = next(iter(source.ledger.reasons.values()), "")
            verb = "can" if tried == source.size else "cannot"
            problem = f"{which} {verb} be read as an image" + f" ({why})" * bool(why)
        else:
            problem = f"an image cannot be decoded ({str(error).splitlines()[0]})"
        raise UnreadableImagesError(f"{source.name}: {problem}") from None


def _ledger(source: Source | Stream, wanted: np.ndarray, used: np.ndarray) -> None:
    if isinstance(source, Source) and source.names:
        source.note_replaced(wanted, used)


def _pad(array: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
