"""Architectures, the training loop, export of the trained model."""
