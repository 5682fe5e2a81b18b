"""Client SDK and in-process prediction."""
