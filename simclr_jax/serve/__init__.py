"""Embeddings, neighbours and classes over HTTP; needs neither JAX nor TensorFlow, absl, etils or flax."""
