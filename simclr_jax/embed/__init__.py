"""Embeddings of any set of images by a trained encoder, as one file, and search in it."""
