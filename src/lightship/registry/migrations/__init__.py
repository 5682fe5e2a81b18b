"""How the registry's tables came to be: an Alembic environment, run by ``lightship.registry.migrate``."""
