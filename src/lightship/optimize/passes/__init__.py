"""Passes: variant in, variant out, one a file."""
