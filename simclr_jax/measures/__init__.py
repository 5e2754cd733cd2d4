"""How good a representation is: features, weighted kNN, linear probes."""
