"""The artifact, its evidence, signatures and trust."""
