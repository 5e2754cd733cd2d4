"""A smaller encoder: fewer channels (`prune`), or int8 weights and activations (`int8`)."""
