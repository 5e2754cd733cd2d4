"""A run's encoder as a folder for the Hugging Face Hub: `python -m simclr_jax.publish`."""
