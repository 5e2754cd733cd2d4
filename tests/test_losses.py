"""Every loss against its formula, row by row in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.losses import contrastive, dense
from simclr_jax.losses.contrastive import nt_xent, supcon
from simclr_jax.losses.pairwise import margin_triplet, nt_logistic, semi_hard_negatives


def formula(z, temperature):
    """Equation 1 of the paper, row by row, in float64: (loss, contrast accuracy, entropy)."""
    n = len(z)
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=-1, keepdims=True)
    rows = unit.reshape(2 * n, -1)
    s = rows @ rows.T / temperature
    losses = []
    for i in range(2 * n):
        others = np.delete(s[i], i)
        top = others.max()
        losses.append(top + np.log(np.exp(others - top).sum()) - s[i, i ^ 1])
    ab = unit[:, 0] @ unit[:, 1].T / temperature
    p = np.exp(ab - ab.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    entropy = -np.mean(np.sum(p * np.log(p + 1e-300), axis=1))
    return np.mean(losses), np.mean(ab.argmax(axis=1) == np.arange(n)), entropy


def embeddings(n, d=16, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 1, d))
    return (base + noise * rng.standard_normal((n, 2, d))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 64])
def test_value_and_metrics(n, temperature):
    z = embeddings(n)
    loss, metrics = jax.jit(nt_xent, static_argnums=1)(z, temperature)
    expected, accuracy, entropy = formula(z, temperature)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-6 / temperature)
    assert float(metrics["contrast_accuracy"]) == pytest.approx(accuracy)
    np.testing.assert_allclose(metrics["contrast_entropy"], entropy, rtol=1e-4, atol=1e-5)


def test_gradient_against_differences_of_the_formula():
    z = embeddings(5, d=4).astype(np.float64)
    gradient = jax.jit(jax.grad(lambda z: nt_xent(z, 0.3)[0]))(z.astype(np.float32))
    for i in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[i] = 1e-6
        slope = (formula(z + step, 0.3)[0] - formula(z - step, 0.3)[0]) / 2e-6
        assert float(gradient[i]) == pytest.approx(slope, abs=2e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_finite_at_zero_rows_and_aligned_views(temperature):
    z = embeddings(4, noise=0.0)
    z[1, 0] = 0
    value, gradient = jax.jit(jax.value_and_grad(lambda z: nt_xent(z, temperature)[0]))(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_low_precision_embeddings_are_computed_in_float32():
    z = jnp.asarray(embeddings(32), jnp.bfloat16)
    loss, metrics = jax.jit(nt_xent, static_argnums=1)(z, 0.1)
    assert loss.dtype == metrics["contrast_entropy"].dtype == jnp.float32
    np.testing.assert_allclose(loss, formula(np.asarray(z, np.float32), 0.1)[0], rtol=1e-5)


def test_eight_devices_give_the_loss_of_one():
    mesh = sharding.make_mesh(8)
    z = embeddings(64)
    gather = lambda x: jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))  # noqa: E731
    f = jax.jit(jax.value_and_grad(lambda z: nt_xent(z, 0.1, gather=gather)[0]))
    split = f(jax.device_put(z, sharding.by_batch(mesh)))
    whole = jax.jit(jax.value_and_grad(lambda z: nt_xent(z, 0.1)[0]))(z)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=1e-7)


OPTIONS = {
    "temperature": 0.3,
    "normalize": True,
    "one_view": False,
    "semi_hard": False,
    "margin": 0.4,
    "sigma": 0.5,
}
CASES = [
    ("nt_xent", {}),
    ("nt_xent", {"one_view": True}),
    ("nt_xent", {"normalize": False, "temperature": 2.0}),
    ("nt_logistic", {}),
    ("nt_logistic", {"one_view": True, "semi_hard": True}),
    ("nt_logistic", {"normalize": False, "temperature": 2.0}),
    ("margin", {}),
    ("margin", {"one_view": True}),
    ("margin", {"semi_hard": True}),
    ("margin", {"semi_hard": True, "normalize": False, "margin": 2.0}),
    ("supcon", {}),
    ("supcon", {"normalize": False, "temperature": 2.0}),
    ("dcl", {}),
    ("dcl", {"one_view": True, "normalize": False, "temperature": 2.0}),
    ("dclw", {}),
    ("dclw", {"one_view": True, "sigma": 0.2}),
    ("dclw", {"normalize": False, "temperature": 2.0}),
]
CASE = pytest.mark.parametrize(("name", "changes"), CASES, ids=str)


def cosine(u, v):
    return u @ v / np.sqrt((u @ u) * (v @ v))


def softplus(x):
    return np.logaddexp(0.0, x)


def row_loss(name, s, positive, negatives, margin, weight):
    """The formula of one row; `s` is over the temperature, and `negatives` are (image, view)."""
    p, others = s(*positive), [s(*each) for each in negatives]
    if name == "nt_xent":
        return np.logaddexp.reduce([p, *others]) - p
    if name == "nt_logistic":
        return softplus(-p) + (np.mean([softplus(each) for each in others]) if others else 0.0)
    if name == "margin":
        return np.mean([max(each - p + margin, 0.0) for each in others]) if others else 0.0
    return np.logaddexp.reduce(others) - weight * p


def slow(name, z, label, still, *, temperature, normalize, one_view, semi_hard, margin, sigma):
    """A loss row by row in float64; the weights of dclw are those of the embeddings `still`."""
    z, still, n = z.astype(np.float64), still.astype(np.float64), len(z)
    alike = cosine if normalize else np.dot
    concentration = [np.exp(cosine(a, b) / sigma) for a, b in still]
    losses = []
    for i in range(n):
        weight = 2 - concentration[i] / np.mean(concentration) if name == "dclw" else 1.0
        for view in (0, 1):

            def s(k, v, i=i, view=view):
                return alike(z[i, view], z[k, v]) / (1.0 if name == "margin" else temperature)

            others = [(k, v) for k in range(n) for v in (0, 1) if (k, v) != (i, view)]
            positive = (i, 1 - view)
            if name == "supcon":
                top = np.logaddexp.reduce([s(*each) for each in others])
                same = [e for e in others if label[i] >= 0 and label[e[0]] == label[i]] or [positive]
                losses.append(-np.mean([s(*each) - top for each in same]))
                continue
            negatives = [(k, v) for k, v in others if k != i and (v != view or not one_view)]
            if semi_hard:
                easier = [each for each in negatives if s(*each) < s(*positive)]
                negatives = [max(easier, key=lambda each: s(*each))] if easier else []
            losses.append(row_loss(name, s, positive, negatives, margin, weight))
    return np.mean(losses)


def labels(n):
    """Classes of some images alike, every third unlabelled."""
    return np.where(np.arange(n) % 3 == 2, -1, np.arange(n) // 4).astype(np.int32)


@pytest.mark.parametrize("n", [2, 3, 16])
@CASE
def test_values_of_all_losses(name, changes, n):
    options = OPTIONS | changes
    z, label = embeddings(n, d=3, noise=1.0, seed=n), labels(n)
    loss, metrics = jax.jit(dense.create(name, **options))(z, label)
    temperature = 1.0 if name == "margin" else options["temperature"]
    expected = slow(name, z, label, z, **options)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-6 / temperature)
    if options["normalize"]:
        _, accuracy, entropy = formula(z, temperature)
        assert float(metrics["contrast_accuracy"]) == pytest.approx(accuracy)
        np.testing.assert_allclose(metrics["contrast_entropy"], entropy, rtol=1e-4, atol=1e-5)


@CASE
def test_gradients_of_all_losses(name, changes):
    options = OPTIONS | changes
    z, label = embeddings(3, d=3, noise=1.5, seed=1), np.int32([0, 0, -1])
    loss = dense.create(name, **options)
    gradient = jax.jit(jax.grad(lambda z: loss(z, label)[0]))(z)
    assert np.abs(gradient).max() > 1e-3
    for i in np.ndindex(z.shape):
        step = np.zeros(z.shape)
        step[i] = 1e-6
        slope = slow(name, z + step, label, z, **options) - slow(name, z - step, label, z, **options)
        assert float(gradient[i]) == pytest.approx(slope / 2e-6, abs=2e-6)


@pytest.mark.parametrize("distinct", [[-1] * 5, [4, 0, 2, 7, 1], [3, -1, -1, 0, 5]])
def test_supcon_without_shared_classes_is_nt_xent(distinct):
    z = embeddings(5, d=4)
    found = jax.jit(supcon, static_argnums=2)(z, np.int32(distinct), 0.2)[0]
    np.testing.assert_allclose(found, jax.jit(nt_xent, static_argnums=1)(z, 0.2)[0], rtol=1e-6)


# Angles in degrees of a0, b0, a1, b1, the cosine of each row's positive, and its semi-hard negative's.
BY_HAND = [
    # b0 and a1, 40° apart, are harder than their positives, so both rows take their other negative.
    ((0, 60, 100, 180), (60, 60, 80, 80), (100, 120, 100, 120)),
    # Both negatives of a0 and of b0 are harder than a positive at a right angle: no term.
    ((0, 90, 10, 80), (90, 90, 70, 70), (None, None, 80, 80)),
]


@pytest.mark.parametrize(("angles", "positives", "negatives"), BY_HAND)
def test_semi_hard_negatives_by_hand(angles, positives, negatives):
    turn = np.radians(angles).reshape(2, 2)
    z = np.stack([np.cos(turn), np.sin(turn)], axis=-1).astype(np.float32)
    hinges, logistic = [], []
    for p, q in zip(positives, negatives, strict=True):
        p, q = np.cos(np.radians(p)), None if q is None else np.cos(np.radians(q))
        hinges.append(0 if q is None else max(q - p + 0.6, 0))
        logistic.append(softplus(-p / 0.5) + (0 if q is None else softplus(q / 0.5)))
    triplet = jax.jit(lambda z: margin_triplet(z, 0.6, semi_hard=True)[0])(z)
    assert float(triplet) == pytest.approx(np.mean(hinges), abs=1e-6)
    found = jax.jit(lambda z: nt_logistic(z, 0.5, semi_hard=True)[0])(z)
    assert float(found) == pytest.approx(np.mean(logistic), abs=1e-6)


def test_equal_negatives_are_not_semi_hard_and_only_one_is_kept():
    z = np.float32([[[1, 0], [0, 1]], [[0, 1], [0, 1]], [[0, -1], [0, -1]]])

    def kept(z):
        pairs = contrastive.compare(z, 1.0, True, lambda x: x)
        return semi_hard_negatives(pairs, contrastive.negatives(pairs, False))

    # Row a0: all are as far as its positive, at a right angle. b0: a1 and b1 are nearer than that; of a2
    # and b2, equally far, the first is kept. The other rows' positives coincide with them; a0 is next.
    mask = np.asarray(jax.jit(kept)(z))
    assert [np.flatnonzero(row).tolist() for row in mask] == [[], [4], [0], [0], [0], [0]]


@pytest.mark.parametrize("name", dense.LOSSES)
@pytest.mark.parametrize("changes", [{}, {"normalize": False}], ids=str)
def test_all_losses_are_finite_at_low_temperature_and_zero_rows(name, changes):
    z = embeddings(4, noise=0.0)
    z[1, 0] = z[2] = 0
    options = OPTIONS | {"temperature": 0.01, "sigma": 0.01} | changes
    loss = dense.create(name, **options)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss(z, labels(4))[0]))(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_one_image_has_no_negatives():
    found = {
        name: jax.jit(dense.create(name, **OPTIONS))(embeddings(1), np.int32([0]))[0]
        for name in ("nt_xent", "margin", "dcl")
    }
    assert found == {"nt_xent": 0, "margin": 0, "dcl": -np.inf}


@pytest.mark.parametrize(
    ("name", "changes"), [("supcon", {}), ("nt_logistic", {"semi_hard": True}), ("dclw", {})], ids=str
)
def test_eight_devices_give_the_value_and_gradient_of_one(name, changes):
    mesh = sharding.make_mesh(8)
    z, label = embeddings(32), labels(32)
    gather = lambda x: jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))  # noqa: E731
    loss = dense.create(name, **OPTIONS | changes)
    f = jax.jit(jax.value_and_grad(lambda z, label: loss(z, label, gather)[0]))
    split = f(*jax.device_put((z, label), sharding.by_batch(mesh)))
    whole = jax.jit(jax.value_and_grad(lambda z: loss(z, label)[0]))(z)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=1e-7)


def test_create_refuses_options_that_a_loss_does_not_take():
    with pytest.raises(ValueError, match=r"^one_view: .*'supcon'.* nt_xent, nt_logistic, margin, dcl, dclw$"):
        dense.create("supcon", **OPTIONS | {"one_view": True})
    for name in ("nt_xent", "supcon", "dcl", "dclw"):
        with pytest.raises(ValueError, match=rf"^semi_hard: .*'{name}'.* nt_logistic, margin$"):
            dense.create(name, **OPTIONS | {"semi_hard": True})
    with pytest.raises(ValueError, match="'nt_exent'; there are nt_xent, nt_logistic, margin"):
        dense.create("nt_exent", **OPTIONS)
