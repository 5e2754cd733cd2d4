"""Random feature corruption: makes views of table rows (SCARF, Bahri et al., arXiv 2106.15147)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import draws


def corrupted_features(features: int, rate: float) -> int:
    """How many features of a row are replaced: ⌊rate · features⌋ (Algorithm 1, line 3).

    Round before the floor: in floating point 0.29 · 100 is 28.999999999999996.
    """
    return math.floor(round(rate * features, 9))


def random_corruption(
    rows: jax.Array,
    bank: jax.Array,
    position: jax.Array,
    seed: int,
    *,
    rate: float = 0.6,
    views: int = 2,
    first_clean: bool = True,
    feature: Sequence[int] = (),
) -> jax.Array:
    """Views `[n, views, d]` of rows `[n, d]` (section 3, Algorithm 1).

    Each row has m features. ⌊rate · m⌋ of them, drawn without replacement, are replaced: a replaced feature
    takes its value from a training row, drawn uniformly and independently for every feature, row and view.

    As in the paper, the first view is the row itself; the others are corrupted.

    Args:
      bank: `[N, d]`, all training rows; its columns are the marginals. Every device needs a full copy.
      position: `[n]` uint32, step · batch + row; (seed, position, view) key the draws.
      rate: share of the features to replace, 0 to 1.
      first_clean: False corrupts the first view too.
      feature: `[d]`, for each column the number 0 .. m - 1 of its feature; () for m = d. The columns of one
        feature are replaced together, from the same training row: the paper corrupts a categorical feature
        before it is one-hot encoded.
    """
    column = np.asarray(feature if len(feature) else range(rows.shape[1]))
    features = int(column.max()) + 1
    replaced = corrupted_features(features, rate)

    def corrupt(row: jax.Array, key: jax.Array) -> jax.Array:
        for_subset, for_values = jax.random.split(key)
        chosen = jax.random.permutation(for_subset, features) < replaced
        donor = jax.random.randint(for_values, (features,), 0, len(bank))
        return jnp.where(chosen[column], bank[donor[column], jnp.arange(len(column))], row)

    clean = jnp.broadcast_to(rows[:, None], (len(rows), int(first_clean), rows.shape[1]))
    keys = draws.view_keys(seed, position, views)[:, int(first_clean) :]
    corrupted = jax.vmap(jax.vmap(corrupt, (None, 0)))(rows, keys)
    return jnp.concatenate([clean, corrupted], axis=1)
