"""Restoration of your own photos: denoising, super-resolution, JPEG artefacts, holes.

    python -m simclr_jax.main --config=configs/restore.py --config.data.source=folder:/my/photos

The folder holds train/*.jpg and test/*.jpg, or photos alone (then none is kept for testing); a few photos
will do. Gaussian noise of sigma 25 by default; `--config.restore.corruption=fewer_pixels` doubles the pixels
a side. The small CNN and its mirror, about 0.3 million parameters, from random parameters; on
`--config.start.workdir=RUN` from the encoder of another run. Then
`python -m simclr_jax.restore --workdir=RUN --images=DIR --out=DIR` restores whole photos.
Hardware: two CPU cores. Time: about 4 minutes. Expected: twice the pixels a side 1.1 dB above bicubic;
noise of sigma 25 at 30.5 dB, 10.3 above the input (five photos held out of 16); docs/restore.md has a
longer training of varied crops, above non-local means on photos that it was not chosen on.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.task = "restore"
    c.restore.crops = 4  # of each photo: reading one takes longer than a crop

    c.data.source = "folder:"
    c.data.image_size = 48

    c.augment.resize = c.eval.resize = "none"  # pixels as they are: resized ones are smoother
    c.augment.jitter = 0.0
    c.augment.grayscale = 0.0
    c.augment.blur = 0.0

    c.model.encoder = "cnn"
    c.model.projection = "none"
    c.model.decoder.output = "residual"
    c.model.decoder.skips = True
    c.model.decoder.upsample = "subpixel"
    c.model.decoder.norm = "none"

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.scaling = "none"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup = config.duration(steps=50)

    c.train.update(config.duration(steps=1000))
    c.train.batch_size = 4
    c.checkpoint.every = config.duration(steps=500)
    c.eval.every = config.duration(steps=500)
    c.eval.batch_size = 8
    return c
