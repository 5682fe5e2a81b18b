"""Evidence signed into the store, and the signed release that lists it as a version in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from lightship.bundle.manifest import Manifest
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.statement import Evidence, sign_evidence
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.engine.machine import fingerprint
from lightship.pipeline.release_card import with_card
from lightship.registry.database import open_database
from lightship.registry.records import EvidenceRow, Registered
from lightship.registry.user import current_user
from lightship.types import Json
from lightship.validate.gate import Policy

__all__ = ["SignedRelease", "sign_rows"]


def sign_rows(store: BlobStore, evidence: Sequence[Evidence], *, key: PrivateKey, created: str) -> list[EvidenceRow]:
    """Sign evidence into the store; return it as a release lists it."""
    machine: Mapping[str, Json] = fingerprint()
    return [
        EvidenceRow(
            item.check,
            item.verdict,
            item.summary,
            store.put(sign_evidence(item, key=key, created=created, machine=machine)),
        )
        for item in evidence
    ]


class SignedRelease:
    """A release in the making, by the key of the home.

    Attributes:
        store: of the home.
        trust: of the home, which knows the key.
    """

    def __init__(self, home: Home, name: str) -> None:
        self._home, self._name = home, name
        self.store, self._key = BlobStore(home.store), PrivateKey.load_or_create(home.keys)
        self.trust = TrustStore(home.trust)
        self._signer = self.trust.add_local(self._key)
        self._created = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def signer(self) -> str:
        """Who signs, for people."""
        signer = self._signer
        return f"{signer.name}  {signer.key_id}" + ("  (a key of this home)" if signer.local else "")

    def sign(self, evidence: Sequence[Evidence]) -> list[EvidenceRow]:
        """Sign evidence into the store; return it as the release lists it."""
        return sign_rows(self.store, evidence, key=self._key, created=self._created)

    def register(
        self,
        manifest: Manifest,
        rows: Sequence[EvidenceRow],
        policy: Policy,
        *,
        status: str,
        why: str,
        note: str,
        accept_unproven: bool,
    ) -> tuple[Registered, tuple[EvidenceRow, ...]]:
        """Release the bundle as the next version; the same bundle again is the version that it has.

        Args:
            manifest: of the bundle.
            rows: the evidence that the release lists.
            policy: that the gate applied.
            status: ``passed``, or ``structural``: then nobody judged how good it is.
            why: for the history.
            note: likewise.
            accept_unproven: let a structural one become production if there is none; the history says who did.

        Returns:
            What was registered, and the evidence of the version that it is.
        """

        def record(version: int) -> str:
            made = Release(
                name=self._name,
                version=version,
                bundle=manifest.digest,
                evidence=tuple((row.check, row.digest) for row in rows),
                policy=policy.to_json(),
                created=self._created,
                status=status,
            )
            made = with_card(made, store=self.store, trust=self.trust, signer=self._signer)
            return self.store.put(sign_release(made, key=self._key))

        with open_database(self._home) as registry:
            registered = registry.add_version(
                self._name,
                bundle=manifest.digest,
                release=record,
                who=current_user(),
                evidence=rows,
                why=why,
                note=note,
                unproven=status != "passed",
                accept_unproven=accept_unproven,
            )
            return registered, registry.find(f"{self._name}:{registered.version}").evidence
