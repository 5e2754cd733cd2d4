"""A table of embeddings and what is done with it; needs neither JAX nor TensorFlow, absl or etils."""
