"""Sweeps: settings of a config's fields, tried one after another or by several processes at once."""
