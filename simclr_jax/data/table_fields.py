"""Fields of `config.data.table`; importing them needs no JAX."""

from simclr_jax.field import PROBABILITY, Field
from simclr_jax.registry import Facts

FACTS = Facts(
    takes="rows",
    fields={
        "label": Field("", "column of the classes; '': label, target, class or the last; none: no labels"),
        "corruption": Field(
            0.6, "share of the features that a view replaces (SCARF)", PROBABILITY, 1.0, "it is a share"
        ),
    },
)
