"""The server: front, batcher, workers, limits."""
