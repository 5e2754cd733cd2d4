"""The tutorials' SimCLR with a decoder: digits to 128 numbers and back, contrast and reconstruction together.

    python -m simclr_jax.main --config=configs/tutorial.py

Three 4×4 convolutions of stride 2 to 128 numbers, and three transposed convolutions back to the image. The
decoder is there for its pictures and is not claimed to help accuracy: docs/decoder.md.

Hardware: 2 CPU cores. Time: 9 minutes (measured), the page one more.
Expected (measured, one run): kNN 95.2 %, linear probe on 100 / 1,000 / 4,000 labels 89.0 / 94.6 / 96.1 %
(untrained encoder 92.5 % and 72.9 / 85.9 / 88.4 %); reconstructions of test digits 16.9 dB, SSIM 0.68.
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "builtin:mnist5k"
    c.data.image_size = 28
    c.data.channels = 1
    # A mirrored digit is another digit, and a sixth of one is none.
    c.augment.flip = 0.0
    c.augment.crop_area = (0.35, 1.0)
    c.augment.rotation = 15.0
    c.augment.device = "all"  # from memory: needs no TensorFlow
    c.augment.jitter = 0.0
    c.model.encoder = "tutorial"
    c.model.decoder.variant = "tutorial"
    c.model.decoder.start = "features"
    c.model.projection_dim = 64
    c.loss.name = "nt_xent+reconstruction"
    c.loss.temperature = 0.2
    c.loss.reconstruction.weight = 10.0
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.scaling = "none"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup = config.duration(epochs=2)
    c.train.epochs = 15.0
    c.train.batch_size = 128
    c.checkpoint.every = config.duration(epochs=5)
    c.log.every = config.duration(steps=10)
    c.eval.every = config.duration(epochs=5)
    c.eval.linear.iterations = 50
    return c
