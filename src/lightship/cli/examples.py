"""The end of a help text: lines to copy. The page of commands has them, too."""

from __future__ import annotations

__all__ = ["examples"]


def examples(*lines: str) -> str:
    """Return the epilog of a command: each line as it is typed."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
