"""From a source of images to batches: the order of data, decoding, augmentation."""
