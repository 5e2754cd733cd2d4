"""Losses that choose, weigh, move or remember negatives: each against its formula, row by row in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import tiny_config, tiny_splits
from test_losses import cosine, embeddings

from simclr_jax import checkpoint, registry, sharding, train
from simclr_jax import metrics as logs
from simclr_jax.config import checks
from simclr_jax.errors import SimclrError
from simclr_jax.losses import negative, queue
from simclr_jax.losses.contrastive import nt_xent
from simclr_jax.losses.negative import LOSSES
from simclr_jax.losses.objective import Sizes
from simclr_jax.tasks import create_task

TEMPERATURE = 0.3
CASES = [
    ("debiased", {"tau_plus": 0.1}),
    ("debiased", {"tau_plus": 0.4}),  # the bound holds for many rows
    ("debiased", {"tau_plus": 0.05, "one_view": True}),
    ("hcl", {"beta": 1.0, "tau_plus": 0.1}),
    ("hcl", {"beta": 0.4, "tau_plus": 0.3, "one_view": True}),
    ("adversarial", {"steps": 1, "step": 0.05, "radius": 0.3}),
    ("adversarial", {"steps": 3, "step": 0.2, "radius": 0.25}),  # they reach the edge of the cap
    ("adversarial", {"steps": 2, "step": 0.2, "radius": 0.3, "one_view": True}),
    ("adversarial", {"steps": 3, "step": 0.4, "radius": 0.5, "normalize": False}),
    ("fnc", {"threshold": 0.2, "most": 1000}),
    ("fnc", {"threshold": -1.0, "most": 2}),
    ("fnc", {"threshold": 0.3, "most": 2, "attract": True}),
    ("fnc", {"threshold": 0.0, "most": 3, "attract": True, "one_view": True}),
    ("fnc", {"threshold": 0.2, "most": 3, "normalize": False}),
]
CASE = pytest.mark.parametrize(("name", "changes"), CASES, ids=str)


def unit(v):
    return v / np.sqrt(v @ v)


def others_of(n, i, view, one_view):
    """The negatives of a row, as (image, view)."""
    return [(k, v) for k in range(n) for v in (0, 1) if k != i and (v != view or not one_view)]


def hard_row(s, positive, negatives, temperature, beta, tau_plus):
    """−log(e^p / (e^p + N g)) with importance weights; β = 0 is the debiased loss."""
    terms = np.exp([s(*each) for each in negatives])
    weights = terms**beta / np.mean(terms**beta)
    g = (np.mean(weights * terms) - tau_plus * np.exp(s(*positive))) / (1 - tau_plus)
    total = len(negatives) * max(g, np.exp(-1 / temperature))
    return np.log(np.exp(s(*positive)) + total) - s(*positive)


def false_row(s, positive, negatives, score, threshold, most, attract):
    """NT-Xent of a row without its false negatives, or with them as positives."""
    best = sorted(negatives, key=score, reverse=True)[:most]
    false = [each for each in best if score(each) > threshold]
    if not attract:
        negatives = [each for each in negatives if each not in false]
    total = np.logaddexp.reduce([s(*each) for each in [positive, *negatives]])
    positives = [positive, *(false if attract else [])]
    return np.mean([total - s(*each) for each in positives])


def moved(z, temperature, steps, step, radius, normalize, one_view):
    """Where projected gradient ascent takes every embedding `[n, 2, d]`, as a negative of all rows."""
    n = len(z)
    now = z.copy()
    for _ in range(steps):
        slope = np.zeros_like(z)
        for i in range(n):
            for view in (0, 1):
                negatives = others_of(n, i, view, one_view)
                logits = [z[i, view] @ z[i, 1 - view] / temperature]
                logits += [z[i, view] @ now[each] / temperature for each in negatives]
                p = np.exp(logits - np.logaddexp.reduce(logits))[1:]
                for each, share in zip(negatives, p, strict=True):
                    slope[each] += share * z[i, view] / temperature
        for each in np.ndindex(n, 2):
            g = slope[each]
            if normalize:
                g = g - (g @ now[each]) * now[each]
            there, centre = now[each] + step * unit(g), z[each]
            if normalize:
                there = unit(there)
                least = 1 - radius**2 / 2
                if there @ centre < least:
                    there = least * centre + np.sqrt(1 - least**2) * unit(there - (there @ centre) * centre)
            elif np.linalg.norm(there - centre) > radius:
                there = centre + radius * unit(there - centre)
            now[each] = there
    return now


def slow(name, z, still, *, one_view=False, normalize=True, **own):
    """A loss row by row in float64; what has no gradient is that of the embeddings `still`."""
    n, z, still = len(z), z.astype(np.float64), still.astype(np.float64)
    if normalize:
        z, still = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, still))
    z_negative = z
    if name == "adversarial":
        z_negative = z + moved(still, TEMPERATURE, **own, normalize=normalize, one_view=one_view) - still
    losses = []
    for i, view in np.ndindex(n, 2):
        positive, negatives = (i, 1 - view), others_of(n, i, view, one_view)

        def s(k, v, i=i, view=view):
            return z[i, view] @ (z if k == i else z_negative)[k, v] / TEMPERATURE

        def score(each, i=i):
            return max(cosine(still[i, v], still[each]) for v in (0, 1))

        if name in ("debiased", "hcl"):
            losses.append(hard_row(s, positive, negatives, TEMPERATURE, **{"beta": 0.0, **own}))
        elif name == "fnc":
            losses.append(false_row(s, positive, negatives, score, **{"attract": False, **own}))
        else:
            logits = [s(*each) for each in [positive, *negatives]]
            losses.append(np.logaddexp.reduce(logits) - logits[0])
    return np.mean(losses)


@CASE
def test_value_gradient_and_metrics(name, changes):
    z = embeddings(5, d=3, noise=1.2, seed=1)
    same = {option: changes[option] for option in ("one_view", "normalize") if option in changes}

    def found(z):
        whole = jax.value_and_grad(lambda z: LOSSES[name](z, TEMPERATURE, **changes), has_aux=True)(z)
        return whole, nt_xent(z, TEMPERATURE, **same)[1]

    ((value, told), gradient), expected = jax.jit(found)(z)
    assert float(value) == pytest.approx(slow(name, z, z, **changes), rel=5e-6)
    for metric, number in expected.items():
        np.testing.assert_allclose(told[metric], number, rtol=1e-6)
    assert np.abs(gradient).max() > 1e-3
    for i in np.ndindex(z.shape):
        change = np.zeros(z.shape)
        change[i] = 1e-6
        slope = slow(name, z + change, z, **changes) - slow(name, z - change, z, **changes)
        assert float(gradient[i]) == pytest.approx(slope / 2e-6, abs=5e-6)


def both(loss, z, *, x64=False):
    """(value, gradient) of a loss."""
    with jax.enable_x64(x64):
        return jax.jit(jax.value_and_grad(lambda z: loss(z)[0]))(z)


@pytest.mark.parametrize(
    ("name", "off", "exact"),
    [
        ("debiased", {"tau_plus": 0.0}, False),
        ("hcl", {"tau_plus": 0.0, "beta": 0.0}, False),
        ("adversarial", {"steps": 0}, True),
        ("adversarial", {"radius": 0.0}, True),
        ("fnc", {"most": 0}, True),
        ("fnc", {"threshold": 1.0}, True),
        ("fnc", {"threshold": 1.0, "attract": True}, False),
    ],
    ids=str,
)
def test_without_their_effect_all_are_nt_xent(name, off, exact):
    """To the bit, or in float64 apart from rounding. Equal images have cosines that round to above 1."""
    z = embeddings(9, d=5).astype(np.float32 if exact else np.float64)
    z[3] = z[7] = 3 * z[1]
    found = both(lambda z: LOSSES[name](z, 0.2, **off), z, x64=not exact)
    expected = both(lambda z: nt_xent(z, 0.2), z, x64=not exact)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-13)


def test_hcl_without_beta_is_debiased_and_goes_over_to_it():
    z = embeddings(9, d=5)
    debiased, hcl = (lambda z, name=name, **own: LOSSES[name](z, 0.2, tau_plus=0.2, **own)
                     for name in ("debiased", "hcl"))  # fmt: skip
    expected = both(debiased, z)
    for beta, tolerance in ((0.0, 0), (1e-5, 1e-4)):
        for one, other in zip(both(lambda z, b=beta: hcl(z, beta=b), z), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance / 100)
    assert both(lambda z: hcl(z, beta=1.0), z)[0] > expected[0]  # the hard ones count for more


def test_where_the_estimate_is_below_its_bound_the_negatives_have_no_gradient():
    """Views that coincide: τ⁺ e^p is above what the negatives add, and N·g is N e^{−1/τ}."""
    z = np.float64([[[1, 0], [1, 0]], [[-1, 0.1], [-1, 0.1]]])
    value, gradient = both(lambda z: LOSSES["debiased"](z, 0.5, tau_plus=0.5), z, x64=True)
    assert float(value) == pytest.approx(np.log(np.exp(2) + 2 * np.exp(-2)) - 2, rel=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_adversarial_negatives_make_the_loss_larger_and_stay_near(normalize):
    z = embeddings(9, d=5, noise=1.0)
    how = {"radius": 0.3, "normalize": normalize}
    losses = [both(lambda z, k=k: LOSSES["adversarial"](z, 0.2, steps=k, **how), z)[0] for k in (0, 1, 4)]
    assert all(np.diff(losses) > 0)
    # No row can lose more than if each of its negatives came nearer by the radius.
    length = 1.0 if normalize else np.linalg.norm(z, axis=-1).max()
    assert losses[-1] - losses[0] < 0.3 * length / 0.2


def test_false_negatives_by_hand():
    """Two images alike, a third at a right angle: each of the two loses the other's two views."""
    z = np.float32([[[1, 0], [1, 0.1]], [[1, 0.05], [1, 0.15]], [[0, 1], [-0.1, 1]]])
    for own, count in (({"threshold": 0.9}, 8 / 6), ({"threshold": 0.9, "most": 1}, 4 / 6)):
        _, metrics = jax.jit(lambda z, own=own: LOSSES["fnc"](z, 0.2, **own))(z)
        assert float(metrics["false_negatives"]) == pytest.approx(count)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_low_temperature_zero_rows_and_without_negatives(name):
    z = embeddings(4, noise=0.0)
    z[1, 0] = z[2] = 0
    for some in (z, z[:1]):
        value, gradient = both(lambda z: LOSSES[name](z, 0.01), some)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    assert value == 0  # of the one image, which has no negatives


@pytest.mark.parametrize("name", LOSSES)
def test_eight_devices_give_the_value_and_gradient_of_one(name):
    mesh, z = sharding.make_mesh(8), embeddings(32)
    gather = lambda x: jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))  # noqa: E731
    split = both(lambda z: LOSSES[name](z, 0.2, gather=gather), jax.device_put(z, sharding.by_batch(mesh)))
    whole = both(lambda z: LOSSES[name](z, 0.2), z)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=2e-7)


# ---- the queue --------------------------------------------------------------------------------------


def slow_queue(z, rows, temperature, one_view=False, normalize=True):
    n, z = len(z), z.astype(np.float64)
    if normalize:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    losses = []
    for i, view in np.ndindex(n, 2):
        row, positive = z[i, view], z[i, view] @ z[i, 1 - view] / temperature
        others = [row @ z[each] / temperature for each in others_of(n, i, view, one_view)]
        others += [row @ q / temperature for q in rows]
        losses.append(np.logaddexp.reduce([positive, *others]) - positive)
    return np.mean(losses)


def memory_of(rows, length):
    filled = np.zeros((length, rows.shape[1]))
    filled[: len(rows)] = rows
    filled[len(rows) :] = 1e3  # would count for much
    return {"rows": filled, "filled": np.int32(len(rows))}


@pytest.mark.parametrize("options", [{}, {"one_view": True}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("filled", [0, 5])
def test_queue_value_and_gradient(options, filled):
    z, rows = (
        embeddings(4, d=3, noise=1.5).astype(np.float64),
        np.random.default_rng(1).normal(size=(filled, 3)),
    )
    memory = memory_of(rows, 7)
    value, gradient = both(lambda z: queue.nt_xent(z, memory, 0.3, **options), z, x64=True)
    assert float(value) == pytest.approx(slow_queue(z, rows, 0.3, **options), rel=1e-12)
    for i in np.ndindex(z.shape):
        change = np.zeros(z.shape)
        change[i] = 1e-6
        slope = slow_queue(z + change, rows, 0.3, **options) - slow_queue(z - change, rows, 0.3, **options)
        assert float(gradient[i]) == pytest.approx(slope / 2e-6, abs=1e-8)
    if not filled:
        np.testing.assert_array_equal(value, both(lambda z: nt_xent(z, 0.3, **options), z, x64=True)[0])


def test_queue_is_finite_at_zero_rows():
    z = embeddings(4, noise=0.0)
    z[1, 0] = z[2] = 0
    memory = {"rows": jnp.zeros((3, 16)), "filled": jnp.int32(2)}
    value, gradient = both(lambda z: queue.nt_xent(z, memory, 0.01), z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [3, 4, 10])
def test_the_oldest_leave_the_queue(length):
    memory = {"rows": jnp.zeros((length, 2)), "filled": jnp.int32(0)}
    came = []
    for number in range(4):
        keys = np.random.default_rng(number).normal(size=(2, 2, 2)).astype(np.float32)
        memory = jax.jit(queue.enqueue, static_argnums=2)(memory, keys, True)
        came = [*map(unit, keys.reshape(4, 2)), *came]
        assert int(memory["filled"]) == min(len(came), length)
        expected = np.stack(came[:length])
        np.testing.assert_allclose(memory["rows"][: len(expected)], expected, rtol=1e-6)


@pytest.fixture
def toy(monkeypatch):
    """An encoder without BatchNorm, which takes each microbatch apart."""
    monkeypatch.setitem(registry.ENCODERS, "toy", registry.Entry("toys:create", toys.ENCODER_FACTS))
    return {"model__encoder": "toy", "model__projection": "none", "loss__name": "queue",
            "loss__queue__length": 80, "loss__queue__decay": 0.8}  # fmt: skip


@pytest.mark.slow
def test_a_run_with_a_queue_is_the_same_on_eight_devices_in_microbatches(toy, tmp_path):
    with jax.enable_x64(True):
        for name, more in (("one", {}), ("eight", {"mesh__devices": 8, "train__microbatch": 8})):
            config = tiny_config(**toy, **more, model__dtype="float64", train__steps=5)
            train.run(config, tmp_path / name, splits=tiny_splits())
    one, eight = (logs.read_rows(tmp_path / name) for name in ("one", "eight"))
    for a, b in zip(one, eight, strict=True):
        for key in ("loss", "grad_norm", "contrast_entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-9)
    queues = [checkpoint.read(tmp_path / name / "checkpoints", 5).arrays for name in ("one", "eight")]
    assert queues[0]["extra/queue/filled"] == 80
    for array in ("extra/queue/rows", "extra/average/encoder/body/kernel"):
        np.testing.assert_allclose(queues[0][array], queues[1][array], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_queue_is_the_same_after_a_stop_to_the_bit(toy, tmp_path):
    splits = tiny_splits()
    train.run(tiny_config(**toy), tmp_path / "whole", splits=splits)
    train.run(tiny_config(**toy), tmp_path / "cut", splits=splits)
    for later in (8, 12):
        (tmp_path / "cut" / "checkpoints" / str(later)).rename(tmp_path / f"gone{later}")
    assert train.run(tiny_config(**toy), tmp_path / "cut", splits=splits)["resumed_from"] == 4
    a, b = (checkpoint.read(tmp_path / name / "checkpoints", 12).arrays for name in ("whole", "cut"))
    assert a.keys() == b.keys() >= {"extra/queue/rows", "extra/queue/filled"}
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_queue_gets_the_averages_projections(toy):
    """Of another model: an average that is far away."""
    task = create_task(tiny_config(**toy), tiny_splits(), sharding.make_mesh(1))
    model, other = (jax.jit(task.init)(jax.random.key(seed))["params"] for seed in (0, 1))
    batch = next(task.input(0))

    def outputs(params):
        return task.forward(params, {}, batch, jax.random.key(0), 0)[0]

    found = jax.jit(outputs)({**model, "average": other})
    z = np.asarray(jax.jit(outputs)(other)["projection"], np.float64).reshape(32, -1)
    objective = task.objectives["queue"]
    memory = jax.jit(objective.update)({}, objective.init(jax.random.key(0))[1], found)
    assert int(memory["filled"]) == 32
    np.testing.assert_allclose(memory["rows"][:32], [unit(v) for v in z], atol=1e-5)
    np.testing.assert_array_equal(memory["rows"][32:], 0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"loss__name": "hcl", "loss__normalize": False},
            "normalize=False: must be True for deb",
        ),
        (
            {"loss__name": "hcl", "loss__hcl__tau_plus": 1.0},
            r"hcl\.tau_plus=1\.0: must be at least 0",
        ),
        (
            {"loss__name": "adversarial", "loss__adversarial__radius": 3.0},
            r"adversarial\.radius=3\.0: must",
        ),
        ({"loss__name": "fnc", "loss__fnc__threshold": 1.5}, r"fnc\.threshold=1\.5: must be"),
        (
            {"loss__name": "queue", "loss__queue__decay": 1.0},
            r"queue\.decay=1\.0: must be above 0",
        ),
    ],
    ids=["normalize", "tau_plus", "radius", "threshold", "decay"],
)
def test_what_does_not_fit_is_told(fields, told):
    with pytest.raises(SimclrError, match=rf"^config\.loss\.{told}"):
        checks.validate(tiny_config(**fields))


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_is_the_loss_with_the_fields_of_the_config(name):
    """Two fields off their defaults, the scale, and a mesh of one."""
    own = {"debiased": {"tau_plus": 0.3}, "hcl": {"beta": 0.5}, "adversarial": {"radius": 0.2, "step": 0.1},
           "fnc": {"threshold": 0.1, "most": 3}}[name]  # fmt: skip
    fields = {f"loss__{name}__{field}": value for field, value in own.items()}
    config = tiny_config(loss__name=name, loss__scale=2.0, loss__one_view=True, **fields)
    sizes = Sizes(9, 2, 5, sharding.make_mesh(1), None, {}, None, {})
    objective = negative.create(name, config.loss, sizes)
    z = embeddings(9, d=5)
    found = jax.jit(lambda z: objective.loss({}, {}, {"projection": z}, {}, 0)[0])(z)
    expected = jax.jit(lambda z: LOSSES[name](z, 0.5, one_view=True, **own)[0])(z)
    assert float(found) == pytest.approx(2 * float(expected), rel=1e-6)
