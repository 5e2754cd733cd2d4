"""Encoders as files that run without this project: `simclr export`."""
