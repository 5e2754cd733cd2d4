"""The parts of tools/torture.py: each makes faults of one kind and says what became of the run."""
