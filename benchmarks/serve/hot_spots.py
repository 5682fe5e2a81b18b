"""Where the server's processes spend their time under load, by sampling: self and whole time of each function.

    pip install py-spy==0.4.3
    python benchmarks/serve/hot_spots.py --wire binary --seconds 5

The front (reads, decodes, encodes, writes) and the worker (runs the graph) are sampled one after the other, 500 times a
second, only while they hold Python's lock: on one core a process that wakes another by a system call loses the core
inside of that call, and would seem to spend its time there. What the calls and the engine cost shows in the first
line, user and system time of the process for each answer. Shares are of the samples of that process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from graphs import SUBJECTS, build_subject
from load import Generator, finished
from server import Server, release
from share_of_floor import CACHE, say
from wires import WIRES, question

from lightship.data.home import Home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SUBJECTS), default="tiny")
    parser.add_argument("--wire", choices=WIRES, default="binary")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=5, help="for each process")
    parser.add_argument("--top", type=int, default=25, help="functions to show")
    parser.add_argument("--native", action="store_true", help="with functions of C extensions")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    if shutil.which("py-spy") is None:
        raise SystemExit("`py-spy` is not on the PATH. Install it: pip install py-spy==0.4.3")
    os.sched_setaffinity(0, {arguments.load_core})
    subject = build_subject(arguments.model, cache=arguments.cache)
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as folder:
        scratch = Path(folder)
        home = Home(scratch / "home").ensure()
        release(home, subject)
        request = scratch / "request"
        request.write_bytes(question(subject.name, subject.row(0), arguments.wire).bytes("127.0.0.1"))
        generator = Generator(arguments.cache, core=arguments.load_core)
        with Server(home, subject.name, core=arguments.server_core, log=scratch / "serve.log") as server:
            for name, pid in zip(("front", "worker"), server.tree.pids, strict=False):
                before = times_s(pid)
                load = generator.start(
                    server.address, request, connections=arguments.connections, seconds=arguments.seconds + 2, warm_up=0
                )
                stacks = sample(pid, scratch / f"{name}.raw", arguments.seconds, native=arguments.native)
                answers = finished(load).statuses["ok"]
                user, system = (1e6 * (after - at) / answers for after, at in zip(times_s(pid), before, strict=True))
                say(f"# {name}: {user:.1f} us user + {system:.1f} us system an answer; {sum(stacks.values())} samples")
                show(stacks, arguments.top)


def times_s(pid: int) -> tuple[float, float]:
    """Return the user and the system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


def sample(pid: int, into: Path, seconds: int, *, native: bool) -> Counter[tuple[str, ...]]:
    """Return how often each stack was seen, outermost function first."""
    command = ["py-spy", "record", "--pid", str(pid), "--duration", str(seconds), "--rate", "500"]
    command += ["--format", "raw", "--output", str(into), "--nonblocking", "--gil"]
    subprocess.run([*command, "--native"] if native else command, check=True, capture_output=True)
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in into.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        stacks[tuple(stack.split(";"))] += int(count)
    return stacks


def show(stacks: Counter[tuple[str, ...]], top: int) -> None:
    """Print the functions with the most time of their own."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for stack, count in stacks.items():
        names = [frame.rpartition(":")[0] or frame for frame in stack]  # without the line of code
        own[names[-1]] += count
        whole.update(dict.fromkeys(names, count))
    total = max(1, sum(own.values()))
    say("   self  whole  function")
    for name, count in own.most_common(top):
        say(f"  {count / total:5.1%}  {whole[name] / total:5.1%}  {name}")


if __name__ == "__main__":
    main()
