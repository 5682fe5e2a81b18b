"""What the machine is, shown to the functions as folders."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightship.engine import machine

CORES = len(os.sched_getaffinity(0))


def tree(root, files):
    """Write files under a root; a machine for the functions to look at."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def many_cores(monkeypatch):
    """A process that may run on 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "290000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/not/visible\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_cores_are_those_of_the_control_group(tmp_path, many_cores, files, cores):
    """The quota of any group above counts, v1 and v2; the host's count does not."""
    assert machine.usable_cores(root=tree(tmp_path, files)) == cores


def test_affinity_counts_without_a_quota(tmp_path):
    """A pinned process has the cores it is pinned to."""
    assert machine.usable_cores(root=tmp_path) == CORES


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 2**30),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8 * 2**30),
        ({"proc/self/cgroup": "2:memory:/j\n", "sys/fs/cgroup/memory/j/memory.limit_in_bytes": "4096\n"}, 4096),
        (
            {"proc/self/cgroup": "2:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            8 * 2**30,
        ),
    ],
)
def test_memory_is_the_smaller_of_limit_and_machine(tmp_path, files, limit):
    """v1 writes "no limit" as a huge number, v2 as a word."""
    tree(tmp_path, {"proc/meminfo": "MemTotal:        8388608 kB\nMemFree: 1 kB\n", **files})

    assert machine.memory_limit_bytes(root=tmp_path) == limit


def test_fingerprint_is_the_same_in_another_process():
    """Nothing in it depends on time, hash seeds or the process."""
    code = "from lightship.engine.machine import fingerprint; print(fingerprint()['digest'])"

    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert machine.fingerprint()["digest"] == other


def test_fingerprint_tells_instruction_sets_apart(tmp_path):
    """A CPU with VNNI gives other int8 numbers, so it is another machine."""
    one = tree(tmp_path / "a", {"proc/cpuinfo": "model name\t: Chip\nflags\t\t: avx2\n"})
    two = tree(tmp_path / "b", {"proc/cpuinfo": "model name\t: Chip\nflags\t\t: avx2 avx512_vnni\n"})

    first, second = machine.fingerprint(root=one), machine.fingerprint(root=two)

    assert (machine.has_vnni(root=one), machine.has_vnni(root=two)) == (False, True)
    assert (first["cpu"], first["vnni"], second["vnni"]) == ("Chip", False, True)
    assert first["digest"] != second["digest"]
