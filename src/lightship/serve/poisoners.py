"""Keys whose inputs kill the worker: each of them is kept away after a few, for longer each time.

An input that has killed a worker is known by its bytes (``quarantine``); who sends a new one each time would still cost
everybody two starts of the worker for each. One such input is an accident, a handful from one key in ten minutes is
not: then all that the key asks of this model is refused for a while, and twice as long after each further one.
Without keys nobody is told apart, so nobody is kept away.
"""

from __future__ import annotations

from lightship.errors import Overloaded

__all__ = ["Poisoners"]

ALLOWED = 3
"""Inputs that killed a worker, of one key, before it is kept away."""
FIRST_S = 10.0
LONGEST_S = 3600.0
FORGET_S = 600.0
"""After so long without one, or after the last time away, a key begins anew."""


class _Count:
    """What one key has sent."""

    __slots__ = ("found", "last_s", "until_s")

    def __init__(self) -> None:
        self.found = 0
        self.last_s = self.until_s = 0.0


class Poisoners:
    """The keys that have sent one model what killed its worker. Bounded by the number of keys; empty for most."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def __len__(self) -> int:
        """Return how many keys have a count."""
        return len(self._counts)

    def found(self, key: str, now_s: float) -> float:
        """Count an input of a key; return for how many seconds the key is kept away from now on: 0 is not yet."""
        if not key:
            return 0.0
        self._forget(now_s)
        count = self._counts.setdefault(key, _Count())
        count.found += 1
        count.last_s = now_s
        over = count.found - ALLOWED
        if over <= 0:
            return 0.0
        seconds = float(min(LONGEST_S, FIRST_S * 2.0 ** min(over - 1, 30)))
        count.until_s = now_s + seconds
        return seconds

    def refuse(self, key: str, now_s: float) -> None:
        """Raise if a key is kept away.

        Raises:
            Overloaded: it is; with how long it has to wait.
        """
        count = self._counts.get(key)
        if count is not None and count.until_s > now_s:
            left_s = count.until_s - now_s
            raise Overloaded(
                f"{count.found} inputs of this key made the model's process die. Nothing of it is run for {left_s:.0f} "
                "s; find out what they have in common before that. Each further one doubles the time.",
                retry_after_s=left_s,
            )

    def _forget(self, now_s: float) -> None:
        old = [key for key, count in self._counts.items() if max(count.last_s, count.until_s) + FORGET_S <= now_s]
        for key in old:
            del self._counts[key]
