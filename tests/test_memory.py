"""Memory goes back to the machine, whichever thread took it. Each case in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks of a few megabytes lie in a heap, not in pages of their own, once a larger one has been freed.
_PROGRAM = """
import sys, threading
from lightship.memory import give_back, keep_one_heap

if sys.argv[1] == "one":
    keep_one_heap()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

del (large := [bytes(24 << 20)])[:]
done, hold = threading.Barrier(5), threading.Event()

def read():
    del (graph := [b"x" * (7 << 20)])[:]
    done.wait()
    hold.wait()

before = resident()
threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
done.wait()
give_back()
print(resident() - before)
hold.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
@pytest.mark.parametrize(("heaps", "least", "most"), [("one", -10.0, 3.0), ("many", 6.0, 40.0)])
def test_what_threads_took_goes_back(heaps, least, most):
    """With a heap for each thread it stays, which is why a server keeps one."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, heaps], capture_output=True, text=True, check=True)

    assert least <= float(done.stdout) <= most
