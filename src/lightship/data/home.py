"""Where Lightship keeps its state: ``LIGHTSHIP_HOME``, by default the user's data folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lightship.errors import InvalidInput

__all__ = ["Home"]


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one home. A path is created by who writes to it, through ``ensure``."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return the home that ``LIGHTSHIP_HOME`` names, or the platform's user data folder.

        Raises:
            InvalidInput: it begins with ``~`` and a user who does not exist, or is a loop of links.
        """
        if named := os.environ.get("LIGHTSHIP_HOME"):
            try:
                return cls(Path(named).expanduser().resolve())
            except (OSError, RuntimeError) as exc:
                raise InvalidInput(f"LIGHTSHIP_HOME={named!r} cannot be resolved: {exc}. Set it to a folder.") from exc
        from platformdirs import user_data_path

        return cls(user_data_path("lightship", appauthor=False))

    @property
    def registry(self) -> Path:
        """The SQLite database of names, versions, aliases and history."""
        return self.root / "registry.db"

    @property
    def store(self) -> Path:
        """Blobs by digest."""
        return self.root / "store"

    @property
    def cache(self) -> Path:
        """What can be fetched or computed again."""
        return self.root / "cache"

    @property
    def runs(self) -> Path:
        """Results of finished stages, and checkpoints of unfinished ones."""
        return self.root / "runs"

    @property
    def tuning(self) -> Path:
        """Measurements that hold for this machine only."""
        return self.root / "tuning"

    @property
    def keys(self) -> Path:
        """Private keys and hashed API keys (0700)."""
        return self.root / "keys"

    @property
    def trust(self) -> Path:
        """Public keys of the signers that this home trusts."""
        return self.root / "trust"

    @property
    def logs(self) -> Path:
        """Logs of servers."""
        return self.root / "logs"

    def ensure(self) -> Home:
        """Create the root, the key folder and the others with the right modes; return self.

        Raises:
            InvalidInput: that cannot be done there.
        """
        try:
            self._make_folders()
        except OSError as exc:
            raise InvalidInput(
                f"The home {self.root} cannot be used: {exc.filename or self.root}: {exc.strerror}. "
                "Set LIGHTSHIP_HOME to a folder that you may write to."
            ) from exc
        return self

    def _make_folders(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self.store, self.cache, self.runs, self.tuning, self.trust, self.logs):
            path.mkdir(exist_ok=True, mode=0o755)
        _set_mode(self.trust, 0o755)  # whatever the umask: nobody else may say who is trusted
        self.keys.mkdir(exist_ok=True, mode=0o700)
        _set_mode(self.keys, 0o700)


def _set_mode(path: Path, mode: int) -> None:
    """Set the mode if it is another one: a home that may only be read can be served from, as long as it is right."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
