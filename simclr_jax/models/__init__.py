"""Encoders, heads and the whole model. registry.py lists the encoders."""
