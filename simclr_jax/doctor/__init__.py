"""The command `python -m simclr_jax.doctor`: what a run needs and what it walks into, before it starts."""
