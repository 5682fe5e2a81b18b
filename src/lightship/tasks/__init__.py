"""What models do: one task a file."""
