"""Facts about the ResNet that need no JAX. Its fields are in `config.model` itself."""

from simclr_jax.errors import SimclrError
from simclr_jax.field import shown
from simclr_jax.registry import Facts, Flat

# depth: (blocks of each group, bottleneck)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}
VARIANTS = ("original", "torch")
# stem: (kernel, stride, padding on each side or None for the original's fixed padding)
STEMS = {"imagenet": (7, 2, None), "cifar": (3, 1, None), "cifar_pad2": (3, 1, 2)}
REMAT_KEEPS = ("inputs", "convolutions")
GROUPS = 4  # of blocks


def check(flat: Flat) -> None:
    """Raises SimclrError if fields do not describe a ResNet."""

    def require(ok: bool, field: str, allowed: str) -> None:
        if not ok:
            raise SimclrError(f"config.{field}={shown(flat[field])}: must be {allowed}")

    blocks, keep = flat["model.blocks"], flat["model.dropblock_keep"]
    counts = all(type(count) is int and count > 0 for count in blocks) and len(blocks) in (0, GROUPS)
    require(counts, "model.blocks", "empty or four whole numbers above 0, like (3,4,6,3)")
    kept = len(keep) in (0, GROUPS) and all(0 < p <= 1 for p in keep)
    require(kept, "model.dropblock_keep", "empty or four probabilities, like (1,1,0.9,0.9)")
    plain = not (flat["model.sk_ratio"] or flat["model.se_ratio"])
    original = flat["model.variant"] == "original"
    require(plain or original, "model.variant", "original for model.sk_ratio or model.se_ratio")


def stages(flat: Flat) -> int:
    """The number of block groups after the stem."""
    return GROUPS


def smallest(flat: Flat) -> tuple[int, str]:
    """(side of the smallest images, why): the total stride, below which the last map has no pixel."""
    return 32 if flat["model.stem"] == "imagenet" else 8, f"the {flat['model.stem']} stem"


def parameters(flat: Flat) -> tuple[float, float]:
    """Approximate number of parameters, within a tenth, and number of features."""
    width = flat["model.width"]
    blocks, bottleneck = DEPTHS[flat["model.depth"]]
    count, features = 0.0, 64 * width
    for group, repeats in enumerate(flat["model.blocks"] or blocks):
        inner = 64 * 2**group * width
        out = inner * (4 if bottleneck else 1)
        spatial = 9 * inner**2 * (2 if flat["model.sk_ratio"] and bottleneck else 1)
        gates = flat["model.sk_ratio"] * 3 * inner**2 + flat["model.se_ratio"] * inner * (inner / 4 + 2 * out)
        for block in range(repeats):
            first = features * out if block == 0 and features != out else 0  # the shortcut
            ends = (features + out) * inner if bottleneck else 9 * features * inner
            count, features = count + first + ends + spatial + gates, out
    return count, features


FACTS = Facts(check=check, stages=stages, smallest=smallest, parameters=parameters)
