"""Your own folder of images, labelled or not, on one GPU.

    python -m simclr_jax.main --config=configs/folder.py --config.data.source=folder:/my/images

The folder may hold class/*.jpg, train/class/*.jpg beside test/class/*.jpg, or images alone: labels
serve the scores and are never needed to train.
Hardware: one GPU of 24 GB. Time: depends on the images; the run shows rate and ETA.
Expected: on ImageNet this recipe (batch 256, 100 epochs, sqrt scaling) gives 62.8 % linear top-1 (paper,
Table B.1); on other images compare with the untrained encoder and raw pixels in the table it prints.
"""

from simclr_jax import config


def get_config():
    c = config.default()  # ResNet-50, 224 px, 100 epochs, LARS
    c.data.source = "folder:"
    c.augment.device = "photometric"  # the host decodes, crops and flips
    c.model.dtype = "bfloat16"
    c.loss.temperature = 0.2  # the author's advice for small batches
    c.loss.scale = 2.0
    c.optimizer.learning_rate = 0.075
    c.optimizer.scaling = "sqrt"
    c.train.batch_size = 256
    c.checkpoint.every = config.duration(epochs=5)
    return c
