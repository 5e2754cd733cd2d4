"""Losses and objectives. Nothing is imported here: fields of objectives are read without JAX."""
