"""The parts of tools/benchmark.py, a module each with `measure(config, ...) -> dict` and `show(dict)`."""
