"""Workers are killed, crash and stand still under load; one input kills whoever runs it; nobody else may notice.

python benchmarks/reliability/workers.py --quick     # 20 s
python benchmarks/reliability/workers.py             # 4 min
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from releases import deadly, gray, network, release
from rig import Figures, Rig, ask, post, run_script, scratch_home, tensor_question, until
from traffic import Question, Traffic

from lightship.data.home import Home
from lightship.tasks.image_pixels import png_bytes

BACK_S = 2.0
BATCH = 16


def kills(home: Home, scratch: Path, figures: Figures, *, number: signal.Signals, times: int) -> None:
    """One signal, again and again, to the worker of one of two models."""
    graphs = {name: {1: network(seed, width=512, layers=4)} for seed, name in enumerate(("digits", "other"))}
    questions = {name: [tensor_question(name, seed, graphs[name]) for seed in range(4)] for name in graphs}
    back, blips = [], 0
    with Rig(home, "digits", "other", log=scratch / "kills.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        with (
            Traffic(rig.address, questions["digits"], rate=80, fresh=0.05) as traffic,
            Traffic(rig.address, questions["other"], rate=40, fresh=0.05) as other,
        ):
            time.sleep(0.5)
            for _ in range(times):
                (pid,) = rig.model("digits")["worker_pids"]
                killed = time.monotonic()
                os.kill(pid, number)
                until(
                    lambda old=pid: (
                        rig.model("digits")["worker_pids"] not in ([old], [])
                        and rig.model("digits")["state"] == "ready"
                    )
                )
                back.append(time.monotonic() - killed)
                blips += 1
                time.sleep(0.5)
        deaths = rig.model("digits")["worker_deaths"]
        untouched = rig.model("other")["worker_deaths"]
    name = number.name
    figures.exactly(f"{name}: deaths counted", deaths, times)
    figures.at_most(f"{name}: worker back, worst of {blips}", max(back), BACK_S, "s")
    result = traffic.result
    figures.exactly(f"{name}: failed of {len(result.records)} {result.why or ''}", len(result.failed), 0)
    figures.at_most(f"{name}: slowest answer", result.ms(1.0), 1000 * BACK_S, "ms")
    figures.exactly(
        f"{name}: other model failed of {len(other.result.records)} {other.result.why or ''}",
        len(other.result.failed),
        0,
    )
    figures.exactly(f"{name}: other model's deaths", untouched, 0)
    figures.add(f"{name}: other model p50 / p99 ms", f"{other.result.ms(0.5):.1f} / {other.result.ms(0.99):.1f}")


def poison(home: Home, scratch: Path, figures: Figures, *, rounds: int) -> None:
    """Batches of sixteen with one input that kills, while others ask for other things."""
    good = Question(post("/predict/deadly", png_bytes(gray(200))))
    graphs = {1: network(1, width=512, layers=4)}
    statuses: Counter[int] = Counter()
    poisoned: Counter[int] = Counter()
    worst_s = 0.0
    with Rig(home, "deadly", "other", log=scratch / "poison.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        with (
            Traffic(rig.address, [good], rate=50) as same,
            Traffic(rig.address, [tensor_question("other", seed, graphs) for seed in range(4)], rate=50) as other,
        ):
            time.sleep(0.5)
            for index in range(rounds):
                began = time.monotonic()
                # Bytes after the image make another file of it: the last one's quarantine must not answer for this one.
                bodies = [png_bytes(gray(0)) + bytes([index])] + [
                    png_bytes(gray(20 + place)) for place in range(BATCH - 1)
                ]
                got = at_once(rig.address, bodies)
                poisoned[got[0]] += 1
                statuses.update(got[1:])
                worst_s = max(worst_s, time.monotonic() - began)
                time.sleep(0.2)
        deaths = rig.model("deadly")["worker_deaths"]
        untouched = rig.model("other")["worker_deaths"]
        again = at_once(rig.address, [png_bytes(gray(0)) + bytes([0])])[0]
        deaths_after = rig.model("deadly")["worker_deaths"]
    figures.exactly(f"poison: {rounds} batches of {BATCH}: the poison", dict(poisoned), {500: rounds})
    figures.exactly("poison: the fifteen beside it", dict(statuses), {200: rounds * (BATCH - 1)})
    figures.at_most("poison: a whole round, worst", worst_s, 2 * BACK_S, "s")
    figures.exactly(
        f"poison: same model's other requests failed, of {len(same.result.records)} {same.result.why or ''}",
        len(same.result.failed),
        0,
    )
    figures.exactly(
        f"poison: other model failed, of {len(other.result.records)} {other.result.why or ''}",
        len(other.result.failed),
        0,
    )
    figures.exactly("poison: other model's deaths", untouched, 0)
    figures.at_most("poison: deaths a round", deaths / rounds, 2)
    figures.exactly("poison: the same input again", (again, deaths_after - deaths), (500, 0))


def at_once(address: tuple[str, int], bodies: list[bytes]) -> list[int]:
    """Send all at the same time; return the statuses in order."""
    found = [0] * len(bodies)

    def one(place: int) -> None:
        found[place] = ask(address, post("/predict/deadly", bodies[place]), 30.0)[0]

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def measure(quick: bool, figures: Figures) -> None:
    """Kill with each signal, then poison."""
    with scratch_home() as (home, scratch):
        release(home, "digits", network(0, width=512, layers=4))
        release(home, "other", network(1, width=512, layers=4))
        release(home, "deadly", deadly())
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP):
            kills(home, scratch, figures, number=number, times=2 if quick else 30)
        poison(home, scratch, figures, rounds=2 if quick else 10)


if __name__ == "__main__":
    run_script(measure, __doc__)
