"""Densities and the Fréchet distance against formulas; the command that generates images."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, tiny_splits, untrained_run
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import multivariate_normal

from simclr_jax import decoding
from simclr_jax.config import load_config
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate.run import complete
from simclr_jax.generate import __main__ as command
from simclr_jax.generate import between, page, run
from simclr_jax.measures import density, frechet
from simclr_jax.models import simclr

# ---- densities ------------------------------------------------------------------------------------------

WEIGHTS, CENTRES = np.array([0.3, 0.7]), np.array([[-2.0, 1.0], [2.0, 0.0]])
COVARIANCES = np.array([[[0.5, 0.4], [0.4, 0.6]], [[1.0, -0.3], [-0.3, 0.2]]])


def known(count, seed):
    """(rows of a mixture of two Gaussians, log p of each), from SciPy."""
    rng = np.random.default_rng(seed)
    which = rng.choice(2, count, p=WEIGHTS)
    parts = [rng.multivariate_normal(m, c, count) for m, c in zip(CENTRES, COVARIANCES, strict=True)]
    x = np.where(which[:, None] == 0, *parts)
    each = [multivariate_normal(m, c).pdf(x) for m, c in zip(CENTRES, COVARIANCES, strict=True)]
    return x, np.log(WEIGHTS @ each)


def wide(n=400, d=7, seed=0):
    """Correlated rows, one number constant and one the sum of two others."""
    x = np.random.default_rng(seed).standard_normal((n, d)) @ np.random.default_rng(1).standard_normal((d, d))
    return np.concatenate([x, np.full((n, 1), 3.0), x[:, :1] + x[:, 1:2]], axis=1)


def random_params(flow, scale=0.3):
    """Parameters with which no coupling is the identity, in the widest float there is."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(flow.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(scale * rng.standard_normal(x.shape)) for x in leaves])


def test_axes_leave_out_what_does_not_vary():
    x = wide()
    axes = density.Axes.fit(x)
    y = axes.apply(x)
    assert y.shape == (400, 7)
    np.testing.assert_allclose(np.cov(y.T), np.eye(7), atol=1e-10)
    np.testing.assert_allclose(axes.back(y), x, atol=1e-10)
    fewer = density.Axes.fit(x, keep=0.9)
    variance = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    count = len(fewer.scale)
    assert variance[: count - 1].sum() < 0.9 * variance.sum() <= variance[:count].sum()
    with pytest.raises(ValueError, match="all alike"):
        density.Axes.fit(np.ones((5, 3)))


@pytest.mark.parametrize("width", [2, 5])
def test_a_flow_is_exact(width):
    """In float64: the inverse, and log |∂z/∂x| against that of the whole Jacobian."""
    with jax.enable_x64(True):
        flow = density.Couplings(width, layers=4, hidden=8, seed=3)
        params = random_params(flow)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((6, width)))
        z, log_det = flow.forward(params, x)
        assert not np.allclose(np.sort(z), np.sort(x), atol=0.1)
        np.testing.assert_allclose(flow.inverse(params, z), x, atol=1e-12)
        jacobians = jax.vmap(jax.jacfwd(lambda row: flow.forward(params, row[None])[0][0]))(x)
        _, expected = np.linalg.slogdet(np.asarray(jacobians))
        np.testing.assert_allclose(log_det, expected, atol=1e-12)
        normal = multivariate_normal(np.zeros(width)).logpdf(np.asarray(z))
        np.testing.assert_allclose(flow.log_prob(params, x), normal + expected, atol=1e-12)


def test_a_flow_inverts_in_float32():
    flow = density.Couplings(16)
    params = jax.tree.map(jnp.float32, random_params(flow, 0.03))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((50, 16)), jnp.float32)
    z, _ = flow.forward(params, x)
    assert not np.allclose(np.sort(z), np.sort(x), atol=0.1)
    np.testing.assert_allclose(flow.inverse(params, z), x, atol=1e-5)


def fitted(name, x, choice, **more):
    axes = density.Axes.fit(x)
    if name == "flow":
        return density.fit_flow(x, choice, axes, epochs=40, **more)
    return density.fit_mixture(x, choice, axes, (1, 2), **more)


@pytest.mark.parametrize(
    ("name", "bound"), [("mixture", 0.01), pytest.param("flow", 0.1, marks=pytest.mark.slow)]
)
def test_a_known_mixture_is_found(name, bound):
    """Held-out nats within a bound of the truth's own; a single Gaussian is further away."""
    (x, _), (choice, _), (test, truth) = known(2500, 0), known(800, 1), known(4000, 2)
    found = fitted(name, x, choice)
    gap = float(np.mean(truth - found.log_prob(test)))
    single = density.fit_mixture(x, choice, density.Axes.fit(x), (1,))
    assert gap < bound < 0.3 < float(np.mean(truth - single.log_prob(test)))
    drawn = found.sample(4000, seed=5)
    np.testing.assert_allclose(drawn.mean(axis=0), WEIGHTS @ CENTRES, atol=0.12)
    assert frechet.distance(drawn, test) < 0.02
    np.testing.assert_allclose(found.sample(10, seed=5), drawn[:10], atol=1e-5)
    assert not np.allclose(found.sample(10, seed=6), drawn[:10])


def test_a_density_is_one_of_latents():
    """The axes' determinant is in it: numerically, ∫ p = 1 over latents of another scale."""
    x = known(1500, 0)[0] * [3.0, 0.2] + [5.0, -1.0]
    side = [np.linspace(mean - 6 * std, mean + 6 * std, 150) for mean, std in zip(x.mean(0), x.std(0))]  # noqa: B905
    points = np.stack(np.meshgrid(*side, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = np.prod([one[1] - one[0] for one in side])
    axes = density.Axes.fit(x)
    couplings = density.Couplings(2, layers=4, hidden=8)
    flow = density.Flow(axes, couplings, jax.tree.map(jnp.float32, random_params(couplings)), 0)
    for found in (flow, density.fit_mixture(x[:1000], x[1000:], axes, (2,))):
        np.testing.assert_allclose(np.exp(found.log_prob(points)).sum() * cell, 1, atol=0.02)


def test_shrinkage_is_chosen_where_rows_are_few():
    """Two components of 30 rows each in 10 dimensions overfit; of 2,000 rows they need no help."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, 10)) + 4 * rng.integers(0, 2, (n, 1)) for n in (60, 4000, 1000)]
    found = [density.fit_mixture(x, made[2], density.Axes.fit(x), (2,)) for x in made[:2]]
    assert found[0].shrinkage > 0.05 >= found[1].shrinkage
    plain = density.mixtures(made[0], found[0].axes, 2)[0]  # which has the same traces
    traces = [np.sum(one.roots**2, axis=(1, 2)) for one in (plain, found[0])]
    np.testing.assert_allclose(*traces, rtol=1e-9)


# ---- Fréchet distance -----------------------------------------------------------------------------------


def gaussian(mean, covariance):
    return frechet.Moments(np.asarray(mean, float), np.linalg.cholesky(covariance).T)


def test_frechet_of_gaussians_that_commute():
    """Covariances with the same axes: ‖μ₁ - μ₂‖² + Σ (σ₁ - σ₂)²."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    one, other = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 1, 0.5, 3])
    a, b = (gaussian(np.full(5, m), axes * s**2 @ axes.T) for m, s in ((0, one), (0.5, other)))
    assert frechet.between(a, b) == pytest.approx(5 * 0.25 + np.sum((one - other) ** 2), rel=1e-12)
    assert frechet.between(a, b) == pytest.approx(frechet.between(b, a), rel=1e-12)


@pytest.mark.parametrize("rows", [60, 5], ids=["regular", "singular"])
def test_frechet_against_the_root_of_a_matrix(rows):
    """SciPy's sqrtm, as the original takes it; with fewer rows than numbers covariances are singular."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((rows, 8)), rng.standard_normal((rows + 3, 8)) @ rng.standard_normal((8, 8))
    s, t = np.cov(a.T), np.cov(b.T)
    tiny = 1e-12 * np.eye(8)
    root = np.trace(sqrtm((s + tiny) @ (t + tiny)).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t) - 2 * root
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-4 if rows == 5 else 1e-9)
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-11)
    assert frechet.distance(a.astype(np.float32), a + [1.0] * 8) == pytest.approx(8, rel=1e-5)


def test_frechet_needs_two_rows():
    with pytest.raises(ValueError, match="two rows"):
        frechet.distance(np.zeros((1, 3)), np.zeros((4, 3)))


# ---- the way between two latents ------------------------------------------------------------------------


def test_ways_between_latents():
    rng = np.random.default_rng(0)
    a, b, centre = rng.standard_normal((3, 6))
    t = np.linspace(0, 1, 5)
    for way in (between.line(a, b, t), between.arc(a, b, t, centre)):
        np.testing.assert_allclose(way[[0, -1]], [a, b], atol=1e-12)
    np.testing.assert_allclose(between.line(a, b, t)[2], (a + b) / 2)
    arc = between.arc(a, b, t, centre) - centre
    lengths = np.linalg.norm(arc, axis=1)
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 5))
    unit = arc / lengths[:, None]
    steps = np.arccos(np.sum(unit[1:] * unit[:-1], axis=1))
    np.testing.assert_allclose(steps, steps[0])
    for other in (2 * a, np.zeros(6)):  # directions that are parallel, or none
        np.testing.assert_allclose(between.arc(a, other, t, np.zeros(6)), between.line(a, other, t))


# ---- encoder and decoder of a run -----------------------------------------------------------------------

JOINT = {
    "loss__name": "nt_xent+reconstruction",
    "model__decoder__start": "features",
    "model__decoder__width": 0.5,
}


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A run that has learned nothing, with a decoder, on images in a file."""
    folder = tmp_path_factory.mktemp("joint")
    (x, y), (test_x, test_y) = tiny_arrays(n=96), tiny_arrays(n=40, seed=7)
    np.savez(folder / "tiny.npz", x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    config = tiny_config(**JOINT, data__source=f"npz:{folder / 'tiny.npz'}", augment__device="all")
    return untrained_run(folder / "run", config)


@pytest.fixture(scope="module")
def generated(joint, tmp_path_factory):
    """(folder, what was printed) of the command."""
    out = tmp_path_factory.mktemp("generated") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "COMPONENTS", (1, 2))
        patch.setattr(density, "PATIENCE", 2)
        command.main([f"--workdir={joint}", f"--out={out}", "--samples=13", "--seed=3"])
    return out


def images_of(size=12):
    return tiny_arrays(n=5, size=size)[0].astype(np.float32) / 255


def test_an_autoencoder_is_encoder_and_decoder(joint):
    found = decoding.load(joint)
    images = images_of()
    latents = found.encode(images, batch_size=3)
    np.testing.assert_allclose(latents, found.encoder(images), atol=1e-6)
    assert latents.shape == (5, found.dim)
    again = found.decode(latents)
    assert again.shape == images.shape
    assert 0 <= again.min() < again.max() <= 1
    np.testing.assert_allclose(found.reconstruct(images), again, atol=1e-6)
    np.testing.assert_allclose(found.decode(found.encode((images * 255).astype(np.uint8))), again, atol=1e-2)
    with pytest.raises(SimclrError, match="images must be"):
        found.encode(images[..., 0])


@pytest.mark.parametrize("fields", [
    {"model__decoder__start": "last", "model__decoder__skips": True},
    {"model__decoder__start": "features", "loss__reconstruction__loss": "bernoulli"},
], ids=["maps of several sizes", "logits"])  # fmt: skip
def test_latents_hold_all_that_a_decoder_reads(fields, tmp_path):
    """They are the endpoints in a row: decoded like these, by the decoder's own call."""
    found = decoding.load(untrained_run(tmp_path / "run", tiny_config(**{**JOINT, **fields})))
    images = images_of()

    @jax.jit
    def decoded(variables):
        every = simclr.endpoints(found.encoder.model, variables, jnp.asarray(images))
        ends = {name: every[name] for name in found.shapes}
        assert {name: end.shape[1:] for name, end in ends.items()} == found.shapes
        own = {"params": variables["params"]["objectives"]["reconstruction"]}
        return found.decoder.apply(own, ends)

    expected = decoded(found.variables)
    if "loss__reconstruction__loss" in fields:
        assert float(jnp.min(expected)) < 0
        expected = jax.nn.sigmoid(expected)
    np.testing.assert_allclose(found.reconstruct(images), expected, atol=1e-5)


def test_a_restorer_has_no_latents(tmp_path):
    untrained_run(tmp_path, tiny_config(task="restore"))
    with pytest.raises(SimclrError, match="is a run of task restore, whose decoder needs an image to mend"):
        decoding.load(tmp_path)


def test_a_run_without_a_decoder_says_which_config_makes_one(tmp_path):
    workdir = untrained_run(tmp_path / "run", tiny_config())
    with pytest.raises(SimclrError, match=r"has no decoder .*'nt_xent'.* --config\.loss\.name=nt_xent\+rec"):
        decoding.load(workdir)


# ---- the command ----------------------------------------------------------------------------------------


def test_the_page_and_its_files(generated):
    made = json.loads((generated / "generate.json").read_text())
    text = (generated / "generate.html").read_text()
    assert made["images"]["held_out"] == 40
    assert set(made["frechet"]) == {"held_out", "reconstructions", "gaussian", "mixture", "flow"}
    assert text.count("data:image/png;base64,") == len(made["figures"]) == 8
    assert "no FID" in text
    assert "Expect blur" in text
    for name in ("mixture", "flow"):
        assert len(made["samples"][name]) == len(list((generated / name).iterdir())) == 13
        assert Image.open(generated / made["samples"][name][0]["file"]).size == (12, 12)
    assert page.lines(made)[0] == "Likelihood of held-out latents"


def test_without_a_test_split_the_page_says_whose_images_they_are(generated):
    made = json.loads((generated / "generate.json").read_text())
    assert made["images"]["trained_on"] is False
    assert page.TRAINED_ON not in (generated / "generate.html").read_text()
    made["images"]["trained_on"] = True
    assert page.TRAINED_ON in page.render(made, generated)
    assert "reconstructions of held-out training images" in "\n".join(page.lines(made))


def test_the_loss_is_the_runs_own(joint):
    """bernoulli would put a sigmoid after the decoder."""
    own, _ = load_config(joint)
    wanted = own.copy_and_resolve_references()
    wanted.loss.reconstruction.loss, wanted.eval.batch_size = "bernoulli", 7
    found = complete(own, wanted, joint)
    assert (found.loss.reconstruction.loss, found.eval.batch_size) == (own.loss.reconstruction.loss, 7)


def unit(found, images):
    h = found.encoder(images)
    return h / np.linalg.norm(h, axis=1, keepdims=True)


def test_neighbours_of_samples_are_the_nearest(generated, joint):
    """Of the PNG files, by brute force."""
    made, found = json.loads((generated / "generate.json").read_text()), decoding.load(joint)
    train = tiny_arrays(n=96)[0].astype(np.float32) / 255
    bank = unit(found, train)
    for one in made["samples"]["flow"]:
        sample = np.asarray(Image.open(generated / one["file"]), np.float32)[..., None] / 255
        away = np.sqrt(np.mean((train - sample) ** 2, axis=(1, 2, 3)))
        assert one["away"] == pytest.approx(away.min(), abs=2e-3)
        assert away[one["nearest_by_pixels"]] == pytest.approx(away.min(), abs=2e-3)
        alike = bank @ unit(found, sample[None])[0]
        assert alike[one["nearest_by_features"]] == pytest.approx(alike.max(), abs=2e-3)
        assert one["alike"] == pytest.approx(alike.max(), abs=2e-3)


def test_copies_are_seen():
    """Samples that are training images are nearer than reconstructions of held-out images."""
    rng = np.random.default_rng(0)

    def near(away, alike):
        none = np.zeros(len(away), int)
        return run.Near(away, none, alike, none)

    plain = near(rng.uniform(0.1, 0.3, 500), rng.uniform(0.5, 0.9, 500))
    copies = near(np.full(500, 0.01), np.full(500, 0.999))
    found = run._copies({"reconstructions": plain, "copies": copies})
    assert found["copies"]["near"] == found["copies"]["similar"] == 1
    assert found["reconstructions"]["near"] == pytest.approx(0.01, abs=0.003)


WRONG = {
    (): "--workdir is missing",
    ("--workdir=no/such",): "no config.json there",
    ("--workdir=RUN", "--samples=0"): "--samples=0: must be 1 or more",
    ("--workdir=RUN", "--seed=-1"): "--seed=-1: must be 0 or more",
    ("--workdir=RUN", "nonsense"): "'nonsense': not understood",
    ("--workdir=RUN", "--config.data.sourc=x"): "no such field",
    ("--workdir=RUN", "--config.data.source=npz:no/such.npz"): "no/such.npz",
    ("--workdir=RUN", "--config.data.source="): "does not say where images are",
    ("--workdir=RUN", "--step=3"): "no checkpoint 3",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_mistakes_are_one_line(words, joint, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([word.replace("RUN", str(joint)) for word in words])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert WRONG[words] in error
    assert error.count("\n") == 1


def test_too_few_images_and_too_many_numbers(joint, tmp_path, monkeypatch):
    few = tiny_splits(n=12)._replace(test=None)
    with pytest.raises(SimclrError, match="11 training images and 1 others: needs 8"):
        run.generate(joint, tmp_path, splits=few)
    monkeypatch.setattr(run, "LATENT", 100)
    with pytest.raises(SimclrError, match="reads 128 numbers"):
        run.generate(joint, tmp_path)


def test_help_imports_no_jax():
    code = (
        "import sys; import simclr_jax.generate.__main__ as m\n"
        "try: m.main(['--help'])\nexcept SystemExit: sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no claim about accuracy" in done.stdout
