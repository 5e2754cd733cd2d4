"""The command `python -m simclr_jax.doctor`: checks what a run needs before it starts."""
