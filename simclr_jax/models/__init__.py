"""Encoders, heads and the whole model. Which encoders there are stands in registry.py."""
