"""Other projects' weights in, ours out: `python -m simclr_jax.convert`."""
