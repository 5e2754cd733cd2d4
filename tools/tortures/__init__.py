"""The parts of tools/torture.py: each causes one kind of fault and reports how the run ended."""
