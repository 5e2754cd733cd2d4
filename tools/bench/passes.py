"""How exact NT-Xent stays with products in passes of low precision: emulated in NumPy, on any machine.

A matrix unit rounds its factors to `bits` of the mantissa and adds up in float32. Split into a rounded part
and the rest, a product of two float32 numbers becomes several such products ("passes").
"""

import numpy as np
from ml_collections import ConfigDict
from scipy.special import logsumexp

from bench import table
from simclr_jax import run_summary

TF32, BFLOAT16 = 10, 7  # bits of the mantissa
WAYS = {  # (bits, passes); None: as NumPy multiplies float32
    "float32": None,
    "TF32 × 3": (TF32, 3),
    "bfloat16 × 6": (BFLOAT16, 6),
    "bfloat16 × 3": (BFLOAT16, 3),
    "TF32": (TF32, 1),
}
VIEWS = {"random views": 0.0, "views alike": 3.0}  # weight of what both views of an image share


def measure(config: ConfigDict, *, images: int = 2048, dim: int = 128) -> dict:
    """How far value and gradient are from float64's, for every way and kind of views."""
    temperature, rows = config.loss.temperature, []
    for views, shared in VIEWS.items():
        rng = np.random.default_rng(0)
        z = shared * rng.normal(size=(images, 1, dim)) + rng.normal(size=(images, 2, dim))
        z = z.reshape(-1, dim) / np.linalg.norm(z, axis=-1).reshape(-1, 1)
        z = z.astype(np.float32)
        exact = nt_xent(z.astype(np.float64), temperature, None)
        for name, how in WAYS.items():
            rows.append({"views": views, "products": name, **off(nt_xent(z, temperature, how), exact)})
    return {"part": "passes", "images": images, "dim": dim, "temperature": temperature, "rows": rows,
            **run_summary.environment()}  # fmt: skip


def off(found: tuple[float, np.ndarray], exact: tuple[float, np.ndarray]) -> dict[str, float]:
    """How far (value, gradient) are from the exact ones, relative to the value and the largest gradient."""
    (value, gradient), (exact_value, exact_gradient) = found, exact
    return {
        "value": abs(value - exact_value) / abs(exact_value),
        "gradient": float(np.abs(gradient - exact_gradient).max() / np.abs(exact_gradient).max()),
    }


def nt_xent(z: np.ndarray, temperature: float, how: tuple[int, int] | None) -> tuple[float, np.ndarray]:
    """(value, gradient by z) of NT-Xent on unit vectors `[2n, d]`, views of an image behind each other."""
    row, t = np.arange(len(z)), z.dtype.type(temperature)
    logits = product(z, z.T, how) / t
    logits[row, row] = -np.inf
    total = logsumexp(logits, axis=1)
    p = np.exp(logits - total[:, None])
    value = float(np.mean(total - logits[row, row ^ 1]))
    p[row, row ^ 1] -= 1
    return value, product(p + p.T, z, how) / t / len(z)


def product(a: np.ndarray, b: np.ndarray, how: tuple[int, int] | None) -> np.ndarray:
    """a @ b, the parts of the factors multiplied apart, the small products added first."""
    if how is None:
        return a @ b
    bits, passes = how
    parts = {1: 1, 3: 2, 6: 3}[passes]
    left, right = (split(x, bits, parts) for x in (a, b))
    pairs = sorted(((i, j) for i in range(parts) for j in range(parts) if i + j < parts), key=sum)
    return sum(left[i] @ right[j] for i, j in reversed(pairs))


def split(x: np.ndarray, bits: int, parts: int) -> list[np.ndarray]:
    """Float32 numbers as a sum of numbers with `bits` of mantissa, the largest first; drops the rest."""
    found = []
    for _ in range(parts):
        found.append(rounded(x, bits))
        x = x - found[-1]
    return found


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """Float32 numbers to the nearest with `bits` of mantissa, ties to even."""
    words, away = x.astype(np.float32).view(np.uint32).astype(np.uint64), 23 - bits
    words += (1 << (away - 1)) - 1 + ((words >> away) & 1)
    return (words >> away << away).astype(np.uint32).view(np.float32)


def show(result: dict) -> None:
    """The table."""
    table.show(
        f"NT-Xent by fewer passes, emulated: {result['images']:,} images, dim {result['dim']}, "
        f"temperature {result['temperature']:g}",
        ("", "products", "value off", "gradient off"),
        [(r["views"], r["products"], f"{r['value']:.0e}", f"{r['gradient']:.0e}") for r in result["rows"]],
        ["relative to float64's value and largest gradient"],
    )
