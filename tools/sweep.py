"""`simclr sweep`, under the name that it had before it was part of the package."""

from simclr_jax.sweep.__main__ import start

if __name__ == "__main__":
    start()
