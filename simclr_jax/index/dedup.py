"""The command: `python -m simclr_jax.index.dedup --index=features.parquet --out=duplicates.csv`."""

import argparse

from simclr_jax import signals

if __name__ == "__main__":
    signals.take("begins anew")

import numpy as np

from simclr_jax import cli
from simclr_jax.errors import SimclrError
from simclr_jax.index import lists, table
from simclr_jax.index.ends import Watch, ends, parsed, shown
from simclr_jax.index.search import BLOCK, normalized

ROWS = 1024  # that are compared at a time
ROUNDING = 1e-6  # of a cosine in float32: that of equal rows may be this much below 1


def duplicates(features: np.ndarray, threshold: float, watch: Watch = iter) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `[n, d]` repeat an earlier one.

    A row is kept unless its cosine to a kept row before it is `threshold` or more: so every row that goes is
    that similar to one that stays, and no two that stay are.

    Args:
      watch: as `ends.shown`.

    Returns:
      (row `[n]` that each repeats, itself where it is kept; their cosine `[n]`, 1 where it is kept).
    """
    unit = normalized(features)
    of, cosine = np.arange(len(unit)), np.ones(len(unit), np.float32)
    kept = np.zeros(len(unit), bool)
    for begin in watch(range(0, len(unit), ROWS)):
        block = unit[begin : begin + ROWS]
        best, where = _before(block, unit[:begin], kept[:begin])
        inside = block @ block.T
        stays: list[int] = []  # of the block
        for i in range(len(block)):
            value, row = best[i], where[i]
            if stays and (own := inside[i, stays]).max() > value:
                value, row = own.max(), begin + stays[int(own.argmax())]
            if value >= threshold - ROUNDING:
                of[begin + i], cosine[begin + i] = row, value
            else:
                stays.append(i)
        kept[begin + np.array(stays, int)] = True
    return of, cosine


def _before(block: np.ndarray, unit: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, row), both `[m]`, of the most similar kept row of `unit`."""
    best, where = np.full(len(block), -np.inf, np.float32), np.zeros(len(block), np.int64)
    rows, step = np.flatnonzero(kept), max(1, BLOCK // max(len(block), 1))
    for at in range(0, len(rows), step):
        chosen = rows[at : at + step]
        similarity = block @ unit[chosen].T
        nearest = similarity.argmax(axis=1)
        value = similarity[np.arange(len(block)), nearest]
        better = value > best
        best, where = np.where(better, value, best), np.where(better, chosen[nearest], where)
    return best, where


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser(
        "simclr_jax.index.dedup",
        "Lists images that are nearly the same as an earlier one of the table.",
        "Look at some before you delete: an encoder that sees little difference finds duplicates "
        "everywhere. Nothing is deleted here.",
        argparse.HelpFormatter,
    )
    add = top.add_argument
    add("--index", metavar="FILE", help="table of embeddings, as `simclr embed` writes it")
    add("--out", metavar="FILE", help="what goes: .csv (file, label, like, cosine) or .txt")
    add("--kept", metavar="FILE", help="what stays: .csv, which list:FILE trains on, or .txt")
    add("--threshold", type=float, default=0.98, metavar="X", help="least cosine of duplicates (0.98)")
    return top


def main(argv: list[str] | None = None) -> None:
    """Writes the lists, and prints how many there are."""
    with ends():
        args = parsed(parser(), argv, index="features.parquet", out="duplicates.csv")
        if not -1 <= args.threshold <= 1:
            raise SimclrError(
                f"--threshold={args.threshold:g}: must be a cosine, from -1 to 1; 0.98 for example"
            )
        out, kept = lists.checked(args.out), lists.checked(args.kept) if args.kept else None
        embeddings = table.read(args.index)
        of, cosine = duplicates(embeddings.features, args.threshold, shown)
        goes, stays = np.flatnonzero(of != np.arange(len(of))), np.flatnonzero(of == np.arange(len(of)))
        like = [embeddings.paths[i] for i in of[goes]]
        lists.write(out, embeddings, goes, {"like": like, "cosine": [f"{x:.4f}" for x in cosine[goes]]})
        if kept:
            lists.write(kept, embeddings, stays)
        print(
            f"{len(goes):,} of {len(of):,} images are like another (cosine {args.threshold:g} or more): {out}"
        )


if __name__ == "__main__":
    main()
