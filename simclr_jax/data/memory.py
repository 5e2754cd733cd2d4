"""Keeps the images in device memory: a batch is a list of image numbers, and a step gathers the pixels.

The images are sharded over the devices. The order of the images equals the order of the tf.data pipeline.
TensorFlow is needed only to read image files, once.
"""

import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from simclr_jax import sharding
from simclr_jax.data import order, pipeline
from simclr_jax.data.formats import to_channels
from simclr_jax.data.sources import Source, Stream
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError

READ_AT_ONCE = 256  # image files


def hold(splits: Splits, data: ConfigDict) -> Splits:
    """The splits with all images in memory, as uint8 with `data.channels` channels.

    Arrays stay as they are. Image files and records become squares of `data.stored_size` pixels, as for
    evaluation: the whole image up to 32 px, else the central square; antialiased. Every process holds all
    images.

    Args:
      data: `config.data`.

    Raises:
      SimclrError: they would take more than `data.memory_gb`.
    """
    side, fields = data.stored_size or data.image_size, ("channels", "memory_gb", "threads")
    options = {"side": side, **{field: data[field] for field in fields}}
    train, test = splits
    return Splits(_hold_one(train, **options), test and _hold_one(test, **options))


def _hold_one(
    source: Source | Stream, *, side: int, channels: int, memory_gb: float, threads: int
) -> Source | Stream:
    if isinstance(source, Source) and source.kind == "array":
        if source.fetch(np.zeros(1, int))[0].shape[-1] == channels:
            return source
        images, labels = source.fetch(np.arange(source.size))
        images = to_channels(images, channels)
    else:
        shape = (source.size, side, side, channels)
        check_size(source, side=side, channels=channels, memory_gb=memory_gb)
        images, labels = np.empty(shape, np.uint8), np.empty(source.size, np.int32)
        reading = {"batch": READ_AT_ONCE, "size": side, "crop": 1.0, "resize": "bilinear"}
        batches = pipeline.eval_batches(source, channels=channels, threads=threads, **reading)
        bar = {"desc": "reading", "unit": "image", "disable": None, "file": sys.stderr}
        with tqdm(total=source.size, **bar) as progress:
            done = 0
            for batch in batches:
                count = int(batch["mask"].sum())
                images[done : done + count] = np.rint(255 * batch["example"][:count])
                labels[done : done + count] = batch["label"][:count]
                done += count
                progress.update(count)
    return Source(
        kind="array",
        name=source.name,
        size=source.size,
        classes=source.classes,
        fetch=lambda index: (images[index], labels[index]),
        read=_no_tensorflow,
        fingerprint=source.fingerprint,
        names=source.names if isinstance(source, Source) else (),
        ledger=source.ledger,
        reading=source.reading,
        notes=source.notes,
        groups=source.groups if isinstance(source, Source) else None,
    )


def check_size(source: Source | Stream, *, side: int, channels: int, memory_gb: float) -> None:
    """Raises SimclrError if the images as squares of `side` pixels take more than `memory_gb`."""
    size = source.size * side**2 * channels / 2**30
    if size > memory_gb:
        raise SimclrError(
            f"{source.name}: {source.size:,} images of {side} × {side} need {size:.1f} GiB, above "
            f"config.data.memory_gb={memory_gb}: raise it, lower config.data.stored_size, or set "
            "config.augment.device=photometric"
        )


def _no_tensorflow(*_: Any) -> NoReturn:
    raise AssertionError("images in memory are not read by TensorFlow")


# ---- training -----------------------------------------------------------------------------------


def put(source: Source, mesh: Mesh) -> dict[str, jax.Array]:
    """{image [N, h, w, c] uint8, label [N] int32} sharded over the devices; N is padded to divide evenly.

    Raises:
      SimclrError: a device has no room for its share.
    """
    share = -(-source.size // mesh.size)
    size = share * source.fetch(np.zeros(1, int))[0].nbytes
    stats = mesh.local_devices[0].memory_stats() or {}
    free = stats.get("bytes_limit", float("inf")) - stats.get("bytes_in_use", 0)
    if size > 0.9 * free:
        raise SimclrError(
            f"{source.name}: {size / 2**30:.1f} GiB of images a device, which has {free / 2**30:.1f} free; "
            "take more devices, or set config.augment.device=photometric"
        )

    def place(which: int) -> jax.Array:
        def rows(part: Any) -> np.ndarray:  # slices
            begin, end, _ = part[0].indices(share * mesh.size)
            found = source.fetch(np.arange(begin, min(end, source.size)))[which]
            return np.pad(found, [(0, end - begin - len(found))] + [(0, 0)] * (found.ndim - 1))

        shape = source.fetch(np.zeros(1, int))[which].shape[1:]
        return jax.make_array_from_callback((share * mesh.size, *shape), sharding.by_batch(mesh), rows)

    return {"image": place(0), "label": place(1)}


def batches(
    source: Source, *, start: int, stop: int, batch: int, seed: int, process: int = 0, processes: int = 1
) -> Iterator[pipeline.Batch]:
    """This process's rows of the batches of steps `start` to `stop`: {index, position} `[n]`."""
    of_run = {"examples": source.size, "batch": batch, "seed": seed}
    for step in range(start, stop):
        index, position = order.step_examples(step, **of_run, process=process, processes=processes)
        yield {"index": index.astype(np.int32), "position": position.astype(np.uint32)}


def gather(held: dict[str, jax.Array], batch: dict[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Gathers the batch {image, label, position} from the arrays of `put` by {index, position}.

    Every device contributes the rows that it holds, and zeros for the rest; a reduce-scatter delivers each
    row to its device. Every device temporarily holds the whole batch as uint8.
    """

    def local(mine: jax.Array, wanted: jax.Array) -> jax.Array:
        everyone = jax.lax.all_gather(wanted, sharding.AXIS, tiled=True)
        row = everyone - jax.lax.axis_index(sharding.AXIS) * len(mine)
        here = ((row >= 0) & (row < len(mine))).reshape(-1, *[1] * (mine.ndim - 1))
        rows = _words(jnp.where(here, mine[jnp.clip(row, 0, len(mine) - 1)], 0))
        found = jax.lax.psum_scatter(rows, sharding.AXIS, scatter_dimension=0, tiled=True)
        return _unwords(found, mine.dtype, mine.shape[1:])

    if mesh.size == 1:
        found = jax.tree.map(lambda x: x[batch["index"]], held)
    else:
        split = jax.P(sharding.AXIS)
        take = jax.shard_map(local, mesh=mesh, in_specs=(split, split), out_specs=split)
        found = jax.tree.map(lambda x: take(x, batch["index"]), held)
    return {**found, "position": batch["position"]}


def _words(rows: jax.Array) -> jax.Array:
    """Packs bytes `[n, ...]` into uint32, which all accelerators can add; leaves other types unchanged."""
    if rows.dtype != jnp.uint8:
        return rows
    flat = rows.reshape(len(rows), -1)
    flat = jnp.pad(flat, [(0, 0), (0, -flat.shape[1] % 4)])
    return jax.lax.bitcast_convert_type(flat.reshape(len(rows), -1, 4), jnp.uint32)


def _unwords(words: jax.Array, dtype: jnp.dtype, shape: tuple[int, ...]) -> jax.Array:
    if dtype != jnp.uint8:
        return words
    flat = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(len(words), -1)
    return flat[:, : int(np.prod(shape))].reshape(-1, *shape)


# ---- evaluation ---------------------------------------------------------------------------------


def eval_batches(
    source: Source, *, batch: int, index: np.ndarray | None = None, process: int = 0, processes: int = 1
) -> Iterator[pipeline.Batch]:
    """`pipeline.eval_batches` for images in memory; {example} is the whole image, `[n, h, w, c]` uint8."""
    index = np.arange(source.size) if index is None else np.asarray(index)
    for rows in order.shares(index, batch, process, processes):
        image, label = source.fetch(np.maximum(rows, 0))
        yield {"example": image, "label": label, "mask": rows >= 0}
