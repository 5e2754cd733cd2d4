"""The paper's ablations in miniature: 10,000 images of Fashion-MNIST, a small CNN, 8 epochs.

    python -m simclr_jax.main --config=configs/ablation.py --config.data.download=True
    python -m simclr_jax.sweep --config=ablation --space=tools/ablations/temperature.py --test

Hardware: one CPU core. Time: 50 seconds, half as long again with the baselines.
Expected (measured): linear probe on 10,000 labels 84.4 %, kNN 83.1 %; untrained encoder 81.2 and 77.9 %, raw
pixels 82.9 and 82.0 %. What the ablations find: docs/ablations.md.
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "tfds:fashion_mnist"
    c.data.train_split = "train[:10000]"
    c.data.image_size = 28
    c.data.channels = 1
    c.augment.device = "all"  # the images live in memory
    c.augment.crop_area = (0.3, 1.0)
    c.augment.jitter_strength = 0.5
    c.augment.blur = 0.0
    c.model.encoder = "cnn"
    c.model.width = 0.5
    c.model.projection_dim = 64
    c.loss.temperature = 0.2
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-2
    c.optimizer.scaling = "none"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup = config.duration(epochs=1)
    c.train.epochs = 8.0
    c.train.batch_size = 256
    c.checkpoint.every = config.duration(epochs=4)
    c.checkpoint.keep = 1
    c.log.every = config.duration(steps=10)
    c.log.tensorboard = False
    c.eval.every = config.duration()  # costs a tenth of the run; the end is what is compared
    c.eval.linear.iterations = 20
    c.eval.linear.draws = 1
    c.eval.figures = False
    return c
