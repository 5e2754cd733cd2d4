"""The tutorials' SimCLR with a decoder: digits to 128 numbers and back, contrast and reconstruction together.

    python -m simclr_jax.main --config=configs/tutorial.py

Three 4×4 convolutions of stride 2 to 128 numbers, and three transposed convolutions back to the image. The
decoder is there for its pictures: it costs accuracy rather than adding to it, see docs/decoder.md.

Hardware: 2 CPU cores. Time: not measured yet.
Expected: not measured yet.
"""

from simclr_jax import config
from simclr_jax.configs import quickstart


def get_config():
    c = quickstart.get_config()
    c.loss.name = "nt_xent+reconstruction"
    c.loss.reconstruction.weight = 10.0
    c.loss.reconstruction.target = "view"
    c.model.encoder = "tutorial"
    c.model.decoder.variant = "tutorial"
    c.model.decoder.start = "features"
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = config.duration(epochs=5)
    return c
