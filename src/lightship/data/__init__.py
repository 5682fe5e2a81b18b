"""Rows in, and bytes on disk."""
