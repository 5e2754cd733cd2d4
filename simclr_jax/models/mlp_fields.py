"""Fields of the MLP, `config.model.mlp`; read before JAX is imported."""

from simclr_jax.field import ARCHITECTURE, BELOW_ONE, POSITIVE, Field
from simclr_jax.registry import Facts, Flat

MOST_LAYERS, MOST_HIDDEN = 1000, 1_000_000
SLOW = "compiles for hours"
LARGE = "its weights fit in no memory"


def _stages(flat: Flat) -> int:
    """The number of the last layer, which is stage layers - 1."""
    return flat["model.mlp.layers"] - 1


def _parameters(flat: Flat) -> tuple[float, float]:
    """Parameters of all layers but the first, whose input size depends on the data."""
    layers, hidden = flat["model.mlp.layers"], flat["model.mlp.hidden"]
    return float((layers - 1) * hidden * (hidden + 1)), float(hidden)


FACTS = Facts(
    takes="rows",
    fields={
        "layers": Field(4, "hidden layers", POSITIVE, most=MOST_LAYERS, why=SLOW, decides=ARCHITECTURE),
        "hidden": Field(
            256, "units of each layer", POSITIVE, most=MOST_HIDDEN, why=LARGE, decides=ARCHITECTURE
        ),
        "dropout": Field(
            0.0, "share of each layer's units that training drops", BELOW_ONE, 1.0, "it is a share"
        ),
    },
    stages=_stages,
    parameters=_parameters,
)
