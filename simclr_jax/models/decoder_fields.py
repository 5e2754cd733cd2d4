"""Fields of the decoder, `config.model.decoder`; importing them needs no JAX."""

from simclr_jax.field import ARCHITECTURE, POSITIVE, Field, Rule, one_of

LAST = "last"  # the encoder's last maps
VARIANTS = ("mirror", "tutorial", "tokens")
OUTPUTS = ("unit", "logits", "residual")
UPSAMPLES = ("resize", "subpixel")
NORMS = ("layer", "group", "none")
ACTIVATIONS = ("relu", "gelu")

FIELDS = {
    "variant": Field(
        "mirror",
        "mirror (convolutions up the encoder's map sizes), tutorial (three transposed convolutions), tokens "
        "(a transformer, for a ViT)",
        one_of(*VARIANTS),
        decides=ARCHITECTURE,
    ),
    "start": Field(
        LAST,
        "endpoint that it decodes: last (the encoder's last maps), features, or another, like block_group2",
        Rule(bool, "the name of an endpoint"),
        decides=ARCHITECTURE,
    ),
    "skips": Field(
        False,
        "mirror: joins the encoder's finer maps on the way up, and the image where the term has it",
        decides=ARCHITECTURE,
    ),
    "upsample": Field(
        "resize",
        "mirror: resize (nearest, then a convolution) or subpixel (a convolution, channels become places)",
        one_of(*UPSAMPLES),
        decides=ARCHITECTURE,
    ),
    "width": Field(
        1.0,
        "multiplies the channels, which are the encoder's at each size",
        POSITIVE,
        most=1000,
        why="its kernels would take terabytes",
        least=1e-6,
        decides=ARCHITECTURE,
    ),
    "channels": Field(
        256,
        "most channels at any size, and numbers in a token",
        POSITIVE,
        most=2**15,
        why="one kernel would take gigabytes",
        decides=ARCHITECTURE,
    ),
    "blocks": Field(
        1,
        "mirror: convolutions at each size, all but the first with a shortcut; tokens: transformer blocks",
        POSITIVE,
        most=1000,
        why="compiling takes hours",
        decides=ARCHITECTURE,
    ),
    "norm": Field(
        "layer",
        "mirror: layer (over the channels of each pixel: tiles equal the whole), group (GroupNorm over the "
        "image) or none",
        one_of(*NORMS),
        decides=ARCHITECTURE,
    ),
    "activation": Field("relu", "mirror: relu or gelu", one_of(*ACTIVATIONS), decides=ARCHITECTURE),
    "output": Field(
        "unit",
        "unit (a sigmoid, in [0, 1]), logits (before it) or residual (added to the image)",
        one_of(*OUTPUTS),
        decides=ARCHITECTURE,
    ),
}
