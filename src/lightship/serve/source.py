"""From a reference to verified bytes: what a server reads of a release before it starts a worker.

The signature and every digest that the server relies on are checked first, and the worker is given exactly the bytes
that were checked: nothing is read a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from lightship.bundle.manifest import REFERENCE, Manifest, Variant
from lightship.data.home import Home
from lightship.errors import BundleRefused
from lightship.registry.releases import VerifiedRelease, read_release
from lightship.types import Interface

__all__ = ["ModelSource", "read_source"]

log = logging.getLogger(__name__)

BATCH = "batch"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One verified model version, in memory.

    Attributes:
        reference: what was asked for.
        bundle, release: digests of the bundle's manifest and of the signed release record.
        batch_rows: the largest batch that the graph was proven for; 0 if it has no batch dimension.
        golden: (path, raw bytes) of each golden input.
        expected: ``.npy`` bytes by the name of the output, for this variant.
        status: of the release; ``structural`` says that nobody measured how good its answers are.
        fallback: reads the bundle's reference, for when this variant does not work on this machine; None if there is
            nothing to fall back to.
        instead_of: (variant, why) when this is that reference.
    """

    reference: str
    name: str
    version: int
    bundle: str
    release: str
    manifest: Manifest
    variant: Variant
    graph: bytes
    batch_rows: int
    golden: tuple[tuple[str, bytes], ...]
    expected: tuple[tuple[str, bytes], ...]
    tolerance: str
    status: str = "passed"
    fallback: Callable[[], ModelSource] | None = None
    instead_of: tuple[str, str] | None = None

    @property
    def interface(self) -> Interface:
        """What the graph takes and gives, and what was proven of it."""
        return self.manifest.interface


def read_source(home: Home, reference: str) -> ModelSource:
    """Resolve ``reference``, verify its release, and read the variant that it runs.

    Raises:
        InvalidInput, NotFound: the reference.
        BundleRefused: a signature, a digest or a file is wrong; the message names it.
    """
    release = read_release(home, reference)
    if release.verification.status == "structural":
        log.warning(
            "%s:%s is structural: how good its answers are was not measured",
            *(release.resolved.name, release.resolved.version),
        )
    manifest = release.bundle.manifest
    source = _variant_source(reference, release, manifest.default)
    if manifest.default == REFERENCE:
        return source
    return replace(source, fallback=lambda: _variant_source(reference, release, REFERENCE))


def _variant_source(reference: str, release: VerifiedRelease, name: str) -> ModelSource:
    resolved, bundle = release.resolved, release.bundle
    manifest = bundle.manifest
    variant = next(variant for variant in manifest.variants if variant.name == name)
    expected = manifest.golden.expected.get(name)
    return ModelSource(
        reference=reference,
        name=resolved.name,
        version=resolved.version,
        bundle=resolved.bundle,
        release=resolved.release,
        manifest=manifest,
        variant=variant,
        graph=bundle.read(variant.graph),
        batch_rows=_proven_batch(manifest.interface),
        golden=tuple((path, bundle.read(path)) for path in manifest.golden.inputs),
        expected=tuple((name, bundle.read(path)) for name, path in expected.outputs.items()) if expected else (),
        tolerance=expected.tolerance if expected else "0",
        status=release.verification.status,
    )


def _proven_batch(interface: Interface) -> int:
    """Return the largest proven batch, or 0 for a graph whose tensors do not all start with a batch dimension."""
    if not all(spec.shape and spec.shape[0] == BATCH for spec in (*interface.inputs, *interface.outputs)):
        return 0
    low, high = interface.proven.get(BATCH, (1, 1))
    if low > 1:
        raise BundleRefused(f"The graph is proven for batches of {low} to {high} rows; a server needs it from 1 on.")
    return high
