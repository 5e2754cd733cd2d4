"""Tiles put together again, and images of any size."""

import itertools

import numpy as np
import pytest

from simclr_jax import tiles

SIZES = [(1, 1), (5, 3), (32, 32), (33, 31), (40, 100), (97, 64), (131, 61)]


def picture(h, w, c=3):
    return np.random.default_rng(h * 1000 + w).random((h, w, c), np.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (32, 8), (32, 16), (17, 5)], ids=str)
def test_the_identity_gives_the_image_back(size, tile, overlap):
    image, shapes = picture(*size), set()

    def identity(x):
        shapes.add(x.shape)
        return x

    found = tiles.blended(image, identity, tile, overlap, batch=3)
    assert found.shape == image.shape
    assert np.abs(found - image).max() < 1e-6
    assert shapes == {(3, tile, tile, 3)}  # one program


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_whole_image_is_reflected_to_the_stride(size):
    image, shapes = picture(*size), []

    def identity(x):
        shapes.append(x.shape)
        return x

    assert np.array_equal(tiles.whole(image, identity, 8), image)
    (_, h, w, _), *more = shapes
    assert (h % 8, w % 8, more) == (0, 0, [])
    assert h - size[0] < 8


def test_reflection_does_not_repeat_the_border():
    image = np.arange(4.0)[:, None, None]
    assert tiles.reflected(image, 7, 1)[:, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0]


@pytest.mark.parametrize("overlap", [1, 4, 16])
def test_windows_of_neighbours_sum_to_one(overlap):
    weights = tiles.window(32, overlap)
    assert np.abs(weights[-overlap:] + weights[:overlap] - 1).max() < 1e-12
    assert weights.min() > 0
    assert weights[16] == pytest.approx(1, abs=0.01)
    assert np.all(np.diff(weights[:overlap]) > 0)


def test_tiles_cover_every_pixel_and_share_the_overlap():
    for size in range(1, 200):
        begin = tiles.starts(size, 32, 8)
        assert begin[0] == 0
        assert begin[-1] + 32 >= size
        assert size <= 32 or begin[-1] + 32 == size
        assert all(b - a <= 24 for a, b in itertools.pairwise(begin))


def test_seams_are_smooth():
    """Tiles that differ by a constant leave a ramp, no step."""
    calls = iter(range(100))
    found = tiles.blended(np.zeros((32, 208, 1), np.float32), lambda x: x + next(calls), 32, 16, batch=1)
    assert np.abs(np.diff(found[0, :, 0])).max() < np.pi / 2 / 16 + 1e-6  # the cosine's steepest step


def test_too_much_overlap_is_refused():
    with pytest.raises(ValueError, match="between 0 and half a tile"):
        tiles.blended(picture(40, 40), lambda x: x, 32, 17)


def test_an_ensemble_turns_every_result_back():
    """The mean over the group: it commutes with turns and reflections, of functions that do not."""
    rng = np.random.default_rng(0)
    image, weights = rng.random((5, 7, 2)), rng.random(7 * 7)

    def uneven(x):
        h, w = x.shape[:2]
        return np.cumsum(x * weights[: h * w].reshape(h, w, 1), axis=0)

    np.testing.assert_allclose(tiles.ensembled(image, lambda x: x), image, rtol=1e-6)
    found = tiles.ensembled(image, uneven)
    assert found.shape == image.shape
    for turn in (lambda x: np.rot90(x), lambda x: x[:, ::-1], lambda x: np.rot90(x[::-1], 3)):
        np.testing.assert_allclose(tiles.ensembled(turn(image), uneven), turn(found), rtol=1e-6)
    each = [uneven(image), uneven(image[:, ::-1])[:, ::-1], uneven(image[::-1])[::-1],
            uneven(image[::-1, ::-1])[::-1, ::-1]]  # fmt: skip
    across = image.transpose(1, 0, 2)
    each += [uneven(across).transpose(1, 0, 2), uneven(across[:, ::-1])[:, ::-1].transpose(1, 0, 2),
             uneven(across[::-1])[::-1].transpose(1, 0, 2),
             uneven(across[::-1, ::-1])[::-1, ::-1].transpose(1, 0, 2)]  # fmt: skip
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-6)
