"""Laws that hold for every input: of NT-Xent, of the order of data, of checkpoints."""

import functools
import tempfile

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simclr_jax import checkpoint, sharding
from simclr_jax.data import order
from simclr_jax.losses import contrastive, tiled
from simclr_jax.state import TrainState

# The examples are the same on every machine; a failure prints the smallest input that fails.
law = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# ---- NT-Xent ------------------------------------------------------------------------------------

# Programs compile for seconds and run for microseconds: three shapes, many values. Ten rows in tiles of
# four leave the last tile half full.
SHAPES = {"n": (2, 5, 8), "d": (3, 4, 2), "tile": (2048, 4, 6), "temperature": (0.1, 0.5, 1.0)}
CASES = list(zip(*SHAPES.values(), strict=True))


@functools.cache
def nt_xent(kind, n, d, tile, temperature):
    """z [n, 2, d] -> ((loss, metrics), gradient), compiled once for each case."""
    loss = functools.partial(contrastive.nt_xent, temperature=temperature)
    if kind == "tiled":
        mesh = sharding.make_mesh(1)
        loss = functools.partial(tiled.nt_xent, temperature=temperature, mesh=mesh, tile=tile)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@st.composite
def embeddings(draw, n, d):
    """Embeddings [n, 2, d] in steps of 1/8, no row of them zero: there the loss has a floor for the norm."""
    z = draw(hnp.arrays(np.float64, (n, 2, d), elements=st.integers(-40, 40).map(lambda i: i / 8)))
    z[..., 0] += (z == 0).all(axis=-1)
    return z


@pytest.mark.parametrize("kind", ["dense", "tiled"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} images")
@law(max_examples=60)
@given(data=st.data())
def test_nt_xent_follows_swap_permutation_and_scale(kind, case, data):
    n, d, *_ = case
    z = data.draw(embeddings(n, d))
    permuted = np.array(data.draw(st.permutations(range(n))))
    exponents = data.draw(hnp.arrays(np.float64, (n, 2, 1), elements=st.integers(-20, 20)))
    scale = 2.0 ** (exponents / 4)  # of each row its own
    with jax.enable_x64(True):
        (value, metrics), gradient = jax.device_get(nt_xent(kind, *case)(z))

        def expect(changed, gradient):
            """The loss of `changed` embeddings is that of z, and its gradient `gradient`."""
            (again, numbers), found = jax.device_get(nt_xent(kind, *case)(changed))
            np.testing.assert_allclose(again, value, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found, gradient, rtol=1e-9, atol=1e-11 * np.abs(gradient).max())
            return numbers

        expect(z[:, ::-1], gradient[:, ::-1])  # the entropy is that of view a's rows, and may change
        entropy = expect(z[permuted], gradient[permuted])["contrast_entropy"]
        np.testing.assert_allclose(entropy, metrics["contrast_entropy"], rtol=1e-9, atol=1e-12)
        expect(z * scale, gradient / scale)
        # A row's length does not matter, so that its gradient has no part along it.
        along = np.sum(z * gradient, axis=-1)
        np.testing.assert_allclose(along, 0, atol=1e-11 * np.abs(z * gradient).max(initial=1e-3))


# ---- order of data ------------------------------------------------------------------------------


@st.composite
def readings(draw):
    """Arguments of `order.step_examples` for one epoch, the step excepted."""
    processes = draw(st.integers(1, 8))
    share = draw(st.integers(1, 12))
    batch = processes * share
    examples = draw(st.integers(batch, 20 * batch + 19))
    epoch = draw(st.one_of(st.integers(0, 3), st.integers(0, 10**7)))
    return examples, batch, processes, draw(st.integers(0, 2**31 - 1)), epoch


@law(max_examples=200)
@given(readings())
def test_an_epoch_is_a_partition_and_processes_share_each_batch(reading):
    examples, batch, processes, seed, epoch = reading
    steps = examples // batch
    which = {"examples": examples, "batch": batch, "seed": seed}
    seen, positions = [], []
    for step in range(epoch * steps, (epoch + 1) * steps):
        index, position = order.step_examples(step, **which)
        parts = [order.step_examples(step, **which, process=p, processes=processes) for p in range(processes)]
        assert {len(rows) for rows, _ in parts} == {batch // processes}
        for whole, shares in zip((index, position), zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(shares), whole)
        seen.append(index)
        positions.append(position)
    seen, positions = np.concatenate(seen), np.concatenate(positions)
    assert len(seen) == examples // batch * batch
    assert len(np.unique(seen)) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < examples
    first = epoch * len(seen)  # positions number the images of the whole run
    np.testing.assert_array_equal(positions, np.arange(first, first + len(seen)))
    np.testing.assert_array_equal(np.sort(order.epoch_order(examples, seed, epoch)), np.arange(examples))


@law(max_examples=100)
@given(st.integers(0, 100), st.integers(1, 6), st.integers(1, 6))
def test_shares_of_an_index_bring_every_entry_once(count, share, processes):
    index = np.arange(count) * 3
    parts = [order.shares(index, share * processes, p, processes) for p in range(processes)]
    assert {part.shape[1] for part in parts} == {share}
    rows = np.concatenate(parts, axis=1).reshape(-1)
    np.testing.assert_array_equal(rows[:count], index)
    assert (rows[count:] == -1).all()
    assert len(rows) - count < share * processes


# ---- checkpoints --------------------------------------------------------------------------------

DTYPES = (np.float32, np.float64, ml_dtypes.bfloat16, np.int32, np.uint8)
NAMES = st.one_of(
    st.sampled_from(["kernel", "Ünïcode ☃", "a.b", "a b", "0", "params", "-", "~", "%2F", "a:b", "'", "[0]"]),
    st.text("abcXYZ019_-.", min_size=1, max_size=12).filter(lambda name: name.strip(".")),
)


@st.composite
def arrays(draw):
    """An array of up to three axes; its bytes are drawn, so NaN and infinity come too."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    values = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return np.ascontiguousarray(values).view(dtype)[..., 0]


TREES = st.dictionaries(
    NAMES,
    st.recursive(arrays(), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=6),
    min_size=1,
    max_size=3,
)


@law(max_examples=10)
@given(params=TREES, extra=TREES, step=st.sampled_from([1, 7, 2**31 - 1]))
def test_any_tree_comes_back_from_a_checkpoint_to_the_bit(params, extra, step):
    with tempfile.TemporaryDirectory() as folder, jax.enable_x64(True):
        with checkpoint.Checkpoints(folder) as checkpoints:
            checkpoints.save(TrainState(np.int32(step), params, extra, ()))
        found, *trees = checkpoint.read_parameters(folder)
    assert found == step
    for before, after in zip((params, extra), trees, strict=True):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, np.asarray(y).tobytes())
