"""The command: `python -m simclr_jax.index.curate --index=features.parquet --subset=1000 --out=FILE`."""

import argparse

from simclr_jax import signals

if __name__ == "__main__":
    signals.take("begins anew")

import numpy as np

from simclr_jax import cli
from simclr_jax.errors import SimclrError
from simclr_jax.index import lists, table
from simclr_jax.index.ends import Watch, ends, parsed, shown
from simclr_jax.index.search import Index, normalized

NEAR = 10  # neighbours that tell how odd a row is


def outliers(similarity: np.ndarray, index: np.ndarray, most: int) -> list[tuple[int, float]]:
    """The rows least like their nearest others (i, mean cosine), the least similar first.

    The mean is over k others, or all where there are fewer (Ramaswamy et al., 2000, rank by the distance to
    the k-th alone, which a group of k odd ones escapes).

    Args:
      similarity, index: `[n, k + 1]`, of the nearest rows of each row, itself among them.
    """
    n = len(index)
    own = index == np.arange(n)[:, None]
    # Where more than k others are equal to a row, it may not be among its own nearest.
    own[:, -1] |= ~own.any(axis=1)
    mean = similarity[~own].reshape(n, -1).mean(axis=1, dtype=np.float64)
    return [(int(i), float(mean[i])) for i in np.argsort(mean, kind="stable")[:most]]


def k_centres(features: np.ndarray, count: int, watch: Watch = iter) -> tuple[list[int], list[float], float]:
    """`count` rows of `[n, d]` that cover the others, greedily: the next is the farthest from those chosen.

    Algorithm 1 of Sener and Savarese (arXiv 1708.00489), by the angle between rows. The first is the row most
    like the mean of all; the largest distance is at most twice that of the best choice.

    Args:
      watch: as `ends.shown`.

    Returns:
      (rows in the order of their choice; the cosine of each to those before it, -1 for the first; the least
      cosine of any row to the chosen one most like it).
    """
    unit = normalized(features)
    chosen, cosine = [int(np.argmax(unit @ unit.mean(axis=0)))], [-1.0]
    nearest = unit @ unit[chosen[0]]
    for _ in watch(range(1, min(count, len(unit)))):
        nearest[chosen[-1]] = np.inf  # never again, also where rows are equal
        chosen.append(int(np.argmin(nearest)))
        cosine.append(float(nearest[chosen[-1]]))
        nearest = np.maximum(nearest, unit @ unit[chosen[-1]])
    return chosen, cosine, min(float(nearest.min()), 1.0)


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser(
        "simclr_jax.index.curate",
        "Lists the images least like any other, or a diverse subset: the ones to label first.",
        "`simclr dedup` lists those that are there twice. Nothing is deleted here.",
        argparse.HelpFormatter,
    )
    add = top.add_argument
    add("--index", metavar="FILE", help="table of embeddings, as `simclr embed` writes it")
    add("--outliers", type=int, default=0, metavar="N", help=f"by the mean cosine to their {NEAR} nearest")
    add("--subset", type=int, default=0, metavar="N", help="by k-centre greedy (arXiv 1708.00489)")
    add("--out", metavar="FILE", help=".csv (file, label, cosine), which list:FILE trains on, or .txt")
    return top


def main(argv: list[str] | None = None) -> None:
    """Writes the list, and prints what it is."""
    with ends():
        args = parsed(parser(), argv, index="features.parquet", out="subset.csv")
        if min(args.outliers, args.subset) < 0 or (args.outliers > 0) == (args.subset > 0):
            raise SimclrError("give one of --outliers=N and --subset=N: for example --subset=1000")
        out = lists.checked(args.out)
        embeddings = table.read(args.index)
        n = len(embeddings.paths)
        if n < 2:
            raise SimclrError(f"{args.index}: has fewer than two rows: nothing to choose from")
        if args.outliers > 0:
            found = outliers(*Index(embeddings).search(embeddings.features, NEAR + 1, shown), args.outliers)
            rows, cosine = [i for i, _ in found], [x for _, x in found]
            line = f"the {len(rows):,} images of {n:,} least like their {NEAR} nearest"
        else:
            rows, cosine, covered = k_centres(embeddings.features, args.subset, shown)
            line = f"{len(rows):,} of {n:,} images; to one of them every image has a cosine of {covered:.3f}"
        lists.write(out, embeddings, rows, {"cosine": [f"{x:.4f}" for x in cosine]})
        print(f"{line}: {out}")


if __name__ == "__main__":
    main()
