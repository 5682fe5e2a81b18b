"""Run a graph; measure it."""
