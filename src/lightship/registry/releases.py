"""From a reference to a release whose signature and bytes were checked: for servers and for use in process.

The registry is a file that many may write; the signed release is what a person vouched for. Both must say the same
name, version and bundle, or somebody who can write the registry could have another bundle run under a good release.
Standard library and ``bundle`` only: servers import this.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightship.bundle.signing import TrustStore
from lightship.bundle.store import BlobStore, BundleReader, StoredBundle
from lightship.bundle.verify import Verification, verify_stored
from lightship.data.home import Home
from lightship.errors import BundleRefused
from lightship.registry.resolve import Resolved, resolve

__all__ = ["VerifiedRelease", "read_release"]


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that may be run.

    Attributes:
        resolved: what the registry says.
        verification: what was checked: signer, evidence, which variants are whole.
        bundle: reads files, each checked against the manifest on the bytes that it returns.
    """

    resolved: Resolved
    verification: Verification
    bundle: BundleReader


def read_release(home: Home, reference: str) -> VerifiedRelease:
    """Resolve ``reference`` and verify its release, as far as the variant that it runs by default.

    Raises:
        InvalidInput: the reference has another form.
        NotFound: no such registry, name, alias or version, or the store lacks the release.
        BundleRefused: bytes, digests or signatures do not agree, or the registry names another bundle than the release.
    """
    resolved = resolve(home, reference)
    store = BlobStore(home.store)
    found = verify_stored(store, resolved.release, trust=TrustStore(home.trust), complete=False)
    said = (resolved.name, resolved.version, resolved.bundle)
    if said != (found.name, found.version, str(found.bundle)):
        raise BundleRefused(
            f"The registry says that {resolved.name}:{resolved.version} is the bundle {resolved.bundle}; its signed "
            f"release {resolved.release} is of {found.name}:{found.version}, bundle {found.bundle}. "
            "One of them was changed: see `lightship history --verify`."
        )
    bundle = StoredBundle(store, resolved.bundle)
    if bundle.manifest.default not in found.variants:
        raise BundleRefused(
            f"Files of {bundle.manifest.default!r}, the variant that {resolved.name}:{resolved.version} runs, are "
            f"missing in {home.store}. Fetch the release again."
        )
    return VerifiedRelease(resolved, found, bundle)
