"""The checks, one a file: arrays and callables in, evidence out."""
