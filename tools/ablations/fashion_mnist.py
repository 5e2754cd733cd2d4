"""Makes an .npz of the first 10,000 training images of Fashion-MNIST and all 10,000 test images.

    python tools/ablations/fashion_mnist.py --idx=/usr/share/datasets/fashion-mnist --out=fashion10k.npz

--idx is a folder of the four files as Zalando publishes them (MIT licence); Debian's package
dataset-fashion-mnist puts them into the folder above. For where TFDS cannot download.
"""

import gzip
from pathlib import Path

import numpy as np
from absl import app, flags

from simclr_jax import main as command
from simclr_jax import paths
from simclr_jax.errors import SimclrError

IDX = flags.DEFINE_string("idx", "/usr/share/datasets/fashion-mnist", "folder of the four .gz files")
OUT = flags.DEFINE_string("out", "fashion10k.npz", "the file to write")
IMAGES = flags.DEFINE_integer("images", 10_000, "training images, the first ones", lower_bound=1)


def read(path: Path) -> np.ndarray:
    """The array of bytes in a gzipped IDX file."""
    if not path.exists():
        raise SimclrError(f"--idx={path.parent}: no {path.name} there; apt-get install dataset-fashion-mnist")
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def main(argv: list[str]) -> None:
    """Writes the file and prints its size."""
    del argv
    arrays, source = {}, Path(paths.local(IDX.value, "--idx"))
    out = Path(paths.local(OUT.value, "--out"))
    for name, prefix, count in (("train", "train", IMAGES.value), ("test", "t10k", None)):
        arrays[f"{name}_images"] = read(source / f"{prefix}-images-idx3-ubyte.gz")[:count]
        arrays[f"{name}_labels"] = read(source / f"{prefix}-labels-idx1-ubyte.gz")[:count]
    np.savez_compressed(out, **arrays)
    sizes = ", ".join(f"{len(array):,} {name}" for name, array in arrays.items())
    print(f"{out}: {out.stat().st_size:,} bytes, {sizes}")


if __name__ == "__main__":
    try:
        app.run(main)
    except SimclrError as error:
        command.fail(error)
