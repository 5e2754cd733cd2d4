"""Sweeps: try settings of a config's fields in sequence, or in parallel by several processes."""
