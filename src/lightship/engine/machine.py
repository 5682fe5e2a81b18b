"""What this machine is, as far as speed and numbers depend on it.

In a container the host's core count lies: what counts is the affinity mask and the CPU quota of the control group.
All functions take the root of the file system, so that a test can show them another machine.
Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/cpusets, scheduler/sched-bwc.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from lightship.types import Json

__all__ = ["fingerprint", "has_fast_bf16", "has_vnni", "memory_left_bytes", "memory_limit_bytes", "usable_cores"]

_LIBRARIES = ("nncf", "numpy", "onnx", "onnxruntime", "openvino", "torch")
_ROOT = Path("/")
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def usable_cores(*, root: Path = _ROOT) -> int:
    """Return how many cores this process may keep busy without being throttled, at least 1.

    The smaller of the affinity mask and the control group's quota, rounded down: the last fraction of a core would
    only be had by stopping all threads at the end of each period.
    """
    cores = len(os.sched_getaffinity(0))
    quota = min(_quotas(root), default=float(cores))
    return max(1, min(cores, int(quota)))


def memory_limit_bytes(*, root: Path = _ROOT) -> int:
    """Return how much memory this process may use: the control group's limit, else the machine's memory."""
    limits = [limit for limit in _memory_limits(root) if limit < _NO_LIMIT_BYTES]
    total = _field(root / "proc/meminfo", "MemTotal")
    if total is not None:
        limits.append(int(total.split()[0]) * 1024)
    return min(limits, default=0)


def memory_left_bytes(*, root: Path = _ROOT) -> int:
    """Return how much more memory this process may use now: of the machine, and of every control group above it.

    Pages of files that the kernel can drop count as free.
    """
    left = [_left(folder) for folder in _groups(root, controller="memory")]
    available = _field(root / "proc/meminfo", "MemAvailable")
    if available is not None:
        left.append(int(available.split()[0]) * 1024)
    return max(0, min((one for one in left if one is not None), default=0))


def _left(folder: Path) -> int | None:
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _read(folder / limit_name), _read(folder / used_name)
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT_BYTES:
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if line.count(" ") == 1)
            return int(limit) - int(used) + int(stat.get(cache_name, 0))
    return None


def fingerprint(*, root: Path = _ROOT) -> dict[str, Json]:
    """Return what a measurement on this machine depends on, with a ``digest`` that is the same in every run.

    Keys: ``cpu``, ``flags_digest`` (instruction sets), ``vnni`` (int8 dot products do not saturate), ``cores``,
    ``memory_gib``, ``platform``, ``python``, ``libraries``, ``digest`` (SHA-256 of the rest).
    """
    facts: dict[str, Json] = {
        "cpu": _field(root / "proc/cpuinfo", "model name") or platform.machine(),
        "flags_digest": hashlib.sha256(" ".join(sorted(_flags(root))).encode()).hexdigest(),
        "vnni": has_vnni(root=root),
        "cores": usable_cores(root=root),
        # Whole GiB: the kernel's own share, and so MemTotal, differs by a few pages from boot to boot.
        "memory_gib": round(memory_limit_bytes(root=root) / 2**30),
        "platform": f"{platform.system()}-{platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    return {**facts, "digest": hashlib.sha256(canonical).hexdigest()}


def has_fast_bf16(*, root: Path = _ROOT) -> bool:
    """Return whether the CPU multiplies bfloat16 itself; elsewhere an engine asked for it computes in float32."""
    flags = _flags(root)
    return "avx512_bf16" in flags or "amx_bf16" in flags


def has_vnni(*, root: Path = _ROOT) -> bool:
    """Return whether the CPU adds up products of 8 bits in 32: quick, and without an overflow on the way."""
    return any("vnni" in flag for flag in _flags(root))


def _flags(root: Path) -> list[str]:
    return (_field(root / "proc/cpuinfo", "flags") or "").split()


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # late: a worker asks for cores and memory only

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _quotas(root: Path) -> Iterator[float]:
    """Yield every CPU quota above this process, in cores."""
    for folder in _groups(root, controller="cpu"):
        both = _read(folder / "cpu.max").split()  # v2: "quota period" or "max period"
        if len(both) == 2 and both[0].isdigit():
            yield int(both[0]) / int(both[1])
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # v1: -1 is no quota
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for folder in _groups(root, controller="memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdigit():
                yield int(limit)


def _groups(root: Path, *, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of all groups above them, v1 and v2.

    A limit of any group above binds too. Inside a container the path in /proc/self/cgroup may be the host's, which is
    not visible; then its folders do not exist and only the mount point, which is the container's own group, is read.
    """
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mounts = [top, top / "unified"]
        elif controller in controllers.split(","):
            mounts = [top / controllers, top / controller]
        else:
            continue
        own = Path(path.lstrip("/"))
        for mount in mounts:
            for part in (own, *own.parents):
                yield mount / part


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _field(path: Path, key: str) -> str | None:
    """Return the value of the first ``key : value`` line."""
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
