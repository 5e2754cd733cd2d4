"""What this device can do at best, measured: the denominator of every "share of the peak"."""

import time

import jax
import jax.numpy as jnp

SIDES = {"cpu": (1024, 2048), "gpu": (4096, 8192, 16384), "tpu": (4096, 8192, 16384)}
REPEATS = 5


def matmul_rate(dtype: str) -> float:
    """FLOP/s of one device: the largest rate of a few big square products in `dtype`."""
    best = 0.0
    multiply = jax.jit(jnp.matmul)
    for side in SIDES.get(jax.default_backend(), SIDES["gpu"]):
        x = jnp.full((side, side), 1 / side, dtype)
        jax.block_until_ready(multiply(x, x))
        for _ in range(REPEATS):
            begin = time.perf_counter()
            jax.block_until_ready(multiply(x, x))
            best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best
