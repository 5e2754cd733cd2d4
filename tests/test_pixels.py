"""Arrays of every kind are read as the images that they are, or refused with a remedy."""

import re

import numpy as np
import pytest

from simclr_jax import memory_error
from simclr_jax.data import notes, pixels, splits
from simclr_jax.data.sources import Splits, from_arrays
from simclr_jax.errors import SimclrError


def images(n=60, side=6, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels)).astype(np.uint8)


def npz(tmp_path, arrays, **options):
    np.savez(tmp_path / "a.npz", **arrays)
    return splits.load(f"npz:{tmp_path / 'a.npz'}", **options)


def test_bytes_stay_as_they_are():
    x = images()
    found, told = pixels.read(x, "a")
    assert found is x or np.shares_memory(found, x)
    assert told == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 255])
def test_floats_are_rounded_to_bytes(dtype, scale):
    x = images(n=2100)
    found, told = pixels.read((x / 255 * scale).astype(dtype), "a")
    assert np.abs(found.astype(int) - x).max() <= (dtype == np.float16)
    assert found.dtype == np.uint8
    assert told == (
        f"a: images are {np.dtype(dtype)} from 0 to {scale}: read as uint8" + ", 1 as 255" * (scale == 1),
    )


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64, np.float32])
def test_whole_numbers_of_other_types(dtype):
    x = images()
    found, told = pixels.read(x.astype(dtype), "a")
    np.testing.assert_array_equal(found, x)
    assert "read as uint8" in told[0]


@pytest.mark.parametrize(
    ("x", "why"),
    [(images() / 127.5 - 1, "float64 from -1 to 1: must be in"), (images() * 257.0, "from 0 to 6.554e+04"),
     (images().astype(np.uint16) * 257, "uint16 from 0 to 6.554e+04: must be in"),
     (np.where(images() > 250, np.nan, 0.5), "from nan to nan: must be in"),
     (np.where(images() > 250, np.inf, 0.5), "to inf: must be in"),
     (images().astype(np.int64) - 1, "int64 from -1 to 254"),
     ((images() > 99).astype(np.int64), "multiply them by 255 if 1 is white"),
     (images() > 99, "not bool"), (images().astype(complex), "not complex128"), (images()[0, 0], "[6, 3]"),
     (images()[:0], "with n > 0"), (images()[None], "[1, 60, 6, 6, 3]")],
)  # fmt: skip
def test_values_that_may_mean_anything(x, why):
    with pytest.raises(SimclrError, match="a: images (are|must be)" + ".*" + re.escape(why)):
        pixels.read(x, "a")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_first(channels):
    x = images(channels=channels)
    found, told = pixels.read(np.moveaxis(x, 3, 1), "a")
    np.testing.assert_array_equal(found, x)
    assert told == (f"a: [60, {channels}, 6, 6] is read as [n, c, h, w]: {channels} channels of 6 × 6",)
    both, told = pixels.read(np.moveaxis(x, 3, 1) / np.float32(255), "a")
    np.testing.assert_array_equal(both, x)
    assert len(told) == 2


@pytest.mark.parametrize("shape", [(60, 6, 6), (60, 6, 6, 1), (60, 3, 6, 3), (60, 6, 6, 13), (60, 3, 3, 3)])
def test_channels_last(shape):
    found, told = pixels.read(np.zeros(shape, np.uint8), "a")
    assert found.shape == (*shape, 1)[:4]
    assert told == ()


def test_a_run_tells_how_images_were_read(tmp_path):
    x = images() / np.float32(255)
    found = npz(tmp_path, {"images": x, "labels": np.arange(60) % 3})
    assert notes.describe(found)[0] == (
        "npz:a.npz/images: images are float32 from 0 to 1: read as uint8, 1 as 255"
    )
    assert found.train.fetch(np.arange(2))[0].dtype == np.uint8
    assert "read as uint8" in notes.describe(Splits(from_arrays(x), None))[0]


# ---- channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "want", "fits"),
    [(1, 3, True), (3, 1, True), (4, 4, True), (13, 13, True),
     (4, 3, False), (13, 3, False), (2, 1, False), (3, 4, False)],
)  # fmt: skip
def test_channels_are_checked_at_load(tmp_path, have, want, fits):
    arrays = {"images": images(channels=have)}
    if fits:
        assert npz(tmp_path, arrays, channels=want).train.size == 60
        return
    with pytest.raises(SimclrError, match=f"have {have} channels: set --config.data.channels={have}"):
        npz(tmp_path, arrays, channels=want)
    with pytest.raises(SimclrError, match=f"arrays: the images have {have} channels"):
        splits.check_channels(Splits(from_arrays(images(channels=have)), None), want)


# ---- size ---------------------------------------------------------------------------------------


def test_arrays_that_memory_cannot_hold_are_not_read(tmp_path, monkeypatch):
    """A hundredth of the size as a file: only the header is looked at."""
    arrays = {"x_train": np.zeros((100_000, 10, 10), np.uint8), "y_train": np.zeros(100_000, np.uint8)}
    np.savez_compressed(tmp_path / "a.npz", **arrays, x_test=np.zeros((9, 10, 10), np.uint8))
    where = f"npz:{tmp_path / 'a.npz'}"
    monkeypatch.setattr(memory_error, "host_free", lambda: 10_000_000)
    with pytest.raises(
        SimclrError, match=r"its arrays take 0\.0 GiB of memory, x_train most, and 0\.0 are free"
    ):
        splits.load(where)
    monkeypatch.setattr(memory_error, "host_free", lambda: 10_200_000)
    assert splits.load(where).train.size == 100_000
    monkeypatch.setattr(memory_error, "host_free", lambda: None)
    assert splits.load(where).train.size == 100_000


def test_a_header_that_promises_too_much(tmp_path):
    npz(tmp_path, {"images": images()})
    whole = (tmp_path / "a.npz").read_bytes()
    big = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000, 6, 6, 3), }"
    begin = whole.index(b"{'descr'")
    end = whole.index(b"\n", begin)
    (tmp_path / "a.npz").write_bytes(whole[:begin] + big.ljust(end - begin) + whole[end:])
    with pytest.raises(SimclrError, match=r"npz:.*(are free|cannot be read)"):
        splits.load(f"npz:{tmp_path / 'a.npz'}")
