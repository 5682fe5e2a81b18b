"""What is said on standard error wherever a version is used that nobody has shown to be right."""

from __future__ import annotations

import click

__all__ = ["say_unproven"]


def say_unproven(name: str, version: int) -> None:
    """Say that a version is unproven, where it does not disturb the output."""
    click.echo(
        f"Note: {name}:{version} is unproven: how good its answers are was not measured. "
        f"See `lightship show {name}:{version}`.",
        err=True,
    )
