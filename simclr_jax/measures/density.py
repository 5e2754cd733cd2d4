"""Densities of latents `[n, d]` that can be sampled: a Gaussian mixture, and a normalising flow.

Both see the latents along their principal axes, each scaled to variance 1 (`Axes`), so their log-likelihoods
can be compared.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp, ndtr

COMPONENTS = (1, 5, 10, 20)  # of a mixture, those with enough rows for each are tried
SHRINKAGE = (0.0, 0.03, 0.1, 0.3)
GAIN, ROUNDS = 2e-4, 100  # of expectation maximisation: least gain of a round, in nats per axis; most rounds
ROWS = 50  # least rows for each component
LOG_2PI = math.log(2 * math.pi)
SMALLEST = 1e-8  # of the largest variance: an axis below it holds rounding alone
LAYERS, HIDDEN = 8, 128  # of a flow: couplings, and the width of their networks
EPOCHS, PATIENCE, BATCH, RATE, DECAY = 200, 15, 256, 2e-3, 1e-4  # of its training
Watch = Callable[[range], Iterable[int]]  # a progress bar around epochs


class Density(Protocol):
    """A density of rows `[n, d]`."""

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Natural logarithm of the density `[n]` at rows `[n, d]`."""
        ...

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Draws `[count, d]`; row i depends on the seed and i alone."""
        ...

    def about(self) -> dict[str, Any]:
        """What was chosen, as JSON takes it."""
        ...


class Axes(NamedTuple):
    """The principal axes of latents, and the deviation along each.

    Axes with the least variance are left out: where a latent is constant there is no density.
    """

    mean: np.ndarray  # [d] float64
    basis: np.ndarray  # [d, r], orthonormal columns
    scale: np.ndarray  # [r]

    @classmethod
    def fit(cls, x: np.ndarray, keep: float = 1.0) -> Self:
        """Those of latents `[n, d]`.

        Args:
          keep: the share of the variance that the axes together must hold; as few as hold it are taken.

        Raises:
          ValueError: there are fewer than two rows, or all are alike.
        """
        x = np.asarray(x, np.float64)
        mean = x.mean(axis=0)
        _, sigma, basis = np.linalg.svd(x - mean, full_matrices=False)
        variance = sigma**2 / max(len(x) - 1, 1)
        if len(x) < 2 or not variance[0] > 0:
            raise ValueError("latents that are all alike have no density")
        share = np.cumsum(variance) / variance.sum()
        enough = int(np.searchsorted(share, keep * (1 - 1e-12))) + 1
        count = min(enough, int(np.sum(variance > SMALLEST * variance[0])))
        return cls(mean, basis[:count].T, np.sqrt(variance[:count]))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Latents `[n, d]` along the axes, `[n, r]`, each of mean 0 and variance 1."""
        return (np.asarray(x, np.float64) - self.mean) @ self.basis / self.scale

    def back(self, y: np.ndarray) -> np.ndarray:
        """Latents `[n, d]` from `[n, r]`; what lies along axes left out is the mean's."""
        return np.asarray(y, np.float64) * self.scale @ self.basis.T + self.mean

    @property
    def log_det(self) -> float:
        """log |∂y/∂x| of `apply` within the axes."""
        return -float(np.sum(np.log(self.scale)))


def normal(count: int, width: int, seed: int) -> np.ndarray:
    """Standard normal numbers `[count, width]`; more rows begin with the same ones."""
    return np.random.default_rng(seed).standard_normal((count, width))


# ---- mixture --------------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """A mixture of Gaussians with full covariances, in float64."""

    axes: Axes
    weights: np.ndarray  # [k]
    means: np.ndarray  # [k, r], along the axes
    roots: np.ndarray  # [k, r, r], lower triangular: root @ root.T is the covariance
    shrinkage: float

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) `[n]` of latents `[n, d]`, in nats."""
        y, terms = self.axes.apply(x), []
        for weight, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            away = solve_triangular(root, (y - mean).T, lower=True)
            norm = 0.5 * len(mean) * LOG_2PI + np.sum(np.log(np.diag(root)))
            terms.append(np.log(weight) - norm - 0.5 * np.sum(away**2, axis=0))
        return logsumexp(terms, axis=0) + self.axes.log_det

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Latents `[count, d]`; row i depends on the seed and i alone."""
        drawn = normal(count, 1 + self.means.shape[1], seed)
        below = np.cumsum(self.weights)[:-1]
        which = np.searchsorted(below, ndtr(drawn[:, 0]), side="right")
        away = np.empty_like(drawn[:, 1:])
        for i, root in enumerate(self.roots):
            away[which == i] = drawn[which == i, 1:] @ root.T
        return self.axes.back(self.means[which] + away)

    def about(self) -> dict[str, Any]:
        """Its components and their shrinkage."""
        return {"components": len(self.weights), "shrinkage": self.shrinkage}


def mixtures(x: np.ndarray, axes: Axes, components: int, seed: int = 0) -> list[Mixture]:
    """A mixture by expectation maximisation (scikit-learn) for each of SHRINKAGE.

    Shrinkage λ makes of every covariance (1 - λ) Σ + λ tr(Σ) / r I. Along the axes I is the covariance of all
    rows: what few rows tell of a component is mixed with what all tell (Friedman, Regularized Discriminant
    Analysis, 1989).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    tolerance = GAIN * len(axes.scale)
    found = GaussianMixture(components, tol=tolerance, reg_covar=1e-4, random_state=seed, max_iter=ROUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is reached in ROUNDS is a mixture, too
        found.fit(axes.apply(x))
    weights, means, covariances = found.weights_, found.means_, found.covariances_
    trace = np.trace(covariances, axis1=1, axis2=2)[:, None, None] / means.shape[1]
    made = []
    for share in SHRINKAGE:
        shrunk = (1 - share) * covariances + share * trace * np.eye(means.shape[1])
        roots = np.stack([cholesky(one, lower=True) for one in shrunk])
        made.append(Mixture(axes, weights, means, roots, share))
    return made


def fit_mixture(
    x: np.ndarray, choice: np.ndarray, axes: Axes, components: Iterable[int] = COMPONENTS, seed: int = 0
) -> Mixture:
    """The mixture of latents `x [n, d]` that gives the latents `choice [m, d]` the highest likelihood.

    Args:
      components: numbers to try; of those with fewer than ROWS rows for each component only the first.
    """
    made = (
        one
        for i, k in enumerate(components)
        if not i or k * ROWS <= len(x)
        for one in mixtures(x, axes, k, seed)
    )
    return max(made, key=lambda one: float(np.mean(one.log_prob(choice))))


# ---- flow -----------------------------------------------------------------------------------------


class Coupling(nn.Module):
    """Scale and shift of the numbers that move, from those that stay."""

    moves: int
    hidden: int

    @nn.compact
    def __call__(self, still: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(log scale `[n, moves]`, between -2 and 2; shift `[n, moves]`); zeros at first."""
        for _ in range(2):
            still = nn.relu(nn.Dense(self.hidden)(still))
        still = nn.Dense(2 * self.moves, kernel_init=nn.initializers.zeros)(still)
        scale, shift = jnp.split(still, 2, axis=1)
        return 2 * jnp.tanh(scale / 2), shift


class Couplings(NamedTuple):
    """RealNVP without its multi-scale part (Dinh et al., arXiv 1605.08803, section 3), for rows `[n, d ≥ 2]`.

    Each affine coupling puts the numbers in an order; the first half stays, and the other half is scaled and
    shifted by functions of it. The next coupling swaps the halves; then comes another random order.
    """

    width: int
    layers: int = LAYERS
    hidden: int = HIDDEN
    seed: int = 0

    @property
    def stays(self) -> int:
        """How many numbers a coupling leaves as they are."""
        return self.width - self.width // 2

    @property
    def network(self) -> Coupling:
        """The network of a coupling; each has parameters of its own."""
        return Coupling(self.width - self.stays, self.hidden)

    def orders(self) -> np.ndarray:
        """The order of each coupling, `[layers, d]`."""
        rng, swap = np.random.default_rng(self.seed), np.roll(np.arange(self.width), -self.stays)
        return np.stack([swap if i % 2 else rng.permutation(self.width) for i in range(self.layers)])

    def init(self, key: jax.Array) -> Any:
        """The first parameters, with which the flow only changes the order; `[layers, ...]` each."""
        still = jnp.zeros((1, self.stays))
        return jax.vmap(lambda one: self.network.init(one, still))(jax.random.split(key, self.layers))

    def forward(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(z `[n, d]`, log |∂z/∂x| `[n]`) of rows x."""

        def step(carry: tuple[jax.Array, jax.Array], layer: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
            (x, total), (own, order) = carry, layer
            still, other = jnp.split(x[:, order], [self.stays], axis=1)
            scale, shift = cast(tuple[jax.Array, jax.Array], self.network.apply(own, still))
            x = jnp.concatenate([still, other * jnp.exp(scale) + shift], axis=1)
            return (x, total + jnp.sum(scale, axis=1)), None

        return jax.lax.scan(step, (x, jnp.zeros(len(x), x.dtype)), (params, self.orders()))[0]

    def inverse(self, params: Any, z: jax.Array) -> jax.Array:
        """x `[n, d]` of rows z."""

        def step(z: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            own, order = layer
            still, other = jnp.split(z, [self.stays], axis=1)
            scale, shift = cast(tuple[jax.Array, jax.Array], self.network.apply(own, still))
            return jnp.concatenate([still, (other - shift) * jnp.exp(-scale)], axis=1)[:, order], None

        return jax.lax.scan(step, z, (params, np.argsort(self.orders(), axis=1)), reverse=True)[0]

    def log_prob(self, params: Any, x: jax.Array) -> jax.Array:
        """log p(x) `[n]`, in nats: z is standard normal (arXiv 1605.08803, equation 3)."""
        z, log_det = self.forward(params, x)
        return log_det - 0.5 * (jnp.sum(z**2, axis=1) + self.width * LOG_2PI)


class Flow(NamedTuple):
    """A trained flow."""

    axes: Axes
    module: Couplings
    params: Any
    epochs: int  # after which it was best on the rows of choice

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) `[n]` of latents `[n, d]`, in nats."""
        y = jnp.asarray(self.axes.apply(x), jnp.result_type(float))
        found = jax.jit(self.module.log_prob)(self.params, y)
        return np.asarray(found, np.float64) + self.axes.log_det

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Latents `[count, d]`; row i depends on the seed and i alone."""
        z = jnp.asarray(normal(count, self.module.width, seed), jnp.result_type(float))
        return self.axes.back(np.asarray(jax.jit(self.module.inverse)(self.params, z)))

    def about(self) -> dict[str, Any]:
        """Its couplings, and after how many epochs it was best."""
        return {"couplings": self.module.layers, "epochs": self.epochs}


def fit_flow(
    x: np.ndarray,
    choice: np.ndarray,
    axes: Axes,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    watch: Watch = iter,
) -> Flow:
    """A flow trained on latents `x [n, d]` until the likelihood of the latents `choice [m, d]` falls.

    AdamW, cosine rate, batches of BATCH rows.

    Raises:
      ValueError: there is only one axis, whose halves would be empty.
    """
    width = len(axes.scale)
    if width < 2:
        raise ValueError("a flow needs two axes: a coupling moves one half by the other")
    rows, held = (jnp.asarray(axes.apply(one), jnp.result_type(float)) for one in (x, choice))
    module = Couplings(width, seed=seed)
    batch = min(BATCH, len(rows))
    steps = len(rows) // batch
    rate = optax.cosine_decay_schedule(RATE, epochs * steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=DECAY))

    def update(carry: Any, index: jax.Array) -> tuple[Any, None]:
        params, state = carry
        gradient = jax.grad(lambda p: -jnp.mean(module.log_prob(p, rows[index])))(params)
        changes, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, changes), state), None

    @jax.jit
    def epoch(carry: Any, order: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(update, carry, order)
        return carry, jnp.mean(module.log_prob(carry[0], held))

    params = jax.jit(module.init)(jax.random.key(seed))
    best, since, carry = (-math.inf, params, 0), 0, (params, optimizer.init(params))
    for number in watch(range(epochs)):
        order = np.random.default_rng((seed, number)).permutation(len(rows))[: steps * batch]
        carry, found = epoch(carry, jnp.asarray(order.reshape(steps, batch)))
        since += 1
        if float(found) > best[0]:
            best, since = (float(found), carry[0], number + 1), 0
        if since >= PATIENCE:
            break
    return Flow(axes, module, *best[1:])
