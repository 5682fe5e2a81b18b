"""Passes that make variants, and the search among them."""
