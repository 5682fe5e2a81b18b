"""The stages, one a file; each takes and gives values."""
