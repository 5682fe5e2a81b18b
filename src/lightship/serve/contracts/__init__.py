"""Wire protocols, one a file."""
