"""Names, versions, aliases, history."""
