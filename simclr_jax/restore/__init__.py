"""Restores whole images by a run of task restore: `python -m simclr_jax.restore`.

Nothing is imported here, so that `--help` answers at once.
"""
