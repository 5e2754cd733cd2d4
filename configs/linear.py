"""Linear evaluation of any run's encoder, as in the paper: the frozen encoder and a linear classifier.

    python -m simclr_jax.main --config=configs/linear.py --config.start.workdir=runs/imagenet

SGD with Nesterov momentum, 90 epochs, rate 0.1 · batch / 256, no decay, crop and flip only (SimCLR, B.6; the
original decays by 1e-6). BatchNorm stands still. Data: ImageNet unless --config.data.source says otherwise.
Hardware: one GPU for ResNet-50. Expected: 64.5 % for 100 epochs of pretraining, 69.3 % for 1000 (paper);
71.7 % for SimCLRv2's converted ResNet-50 (its table). Not measured here yet.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.task = "supervised"
    c.start.workdir = "runs/imagenet"

    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.image_size = 0
    c.data.channels = 0

    c.augment.jitter = 0.0
    c.augment.grayscale = 0.0
    c.augment.blur = 0.0

    c.finetune.after_block = 1000  # all of any encoder
    c.model.dtype = "bfloat16"

    c.optimizer.name = "sgd"
    c.optimizer.nesterov = True
    c.optimizer.learning_rate = 0.1
    c.optimizer.weight_decay = 0.0
    c.optimizer.warmup = config.duration()

    c.train.epochs = 90.0
    c.train.batch_size = 4096
    c.eval.every = config.duration(epochs=5)
    return c
