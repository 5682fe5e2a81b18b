"""The command against the best that other tools reach by hand, on one machine in one run.

    python benchmarks/optimize/by_hand.py resnet18|minilm|digits|… [--rounds 5] [--minutes 5] [--also NAME=FILE.onnx …]

Contestants: PyTorch eager, ONNX Runtime as it comes and with its own quantizers, OpenVINO, NNCF's two recipes on
OpenVINO's own format, and what `lightship optimize` released for latency and for throughput. Files that other tools
made (`rivals/make.py`) join with --also. Each round runs every contestant once, in a fresh process of its own, with one
thread and with two, in shuffled order, but those that were not half as fast as the best in the first one; what is the
same file for the same tool runs once. A figure is the median over rounds, and a ratio that of the medians. With --keep
a run that was stopped goes on.

Every contestant is judged by the command's own budget of fidelity to ONNX Runtime's answers, at an alpha of 5 %, on up
to 600 rows that none of the other tools was calibrated on. The command gets all rows and parts them itself, so some
that it calibrated on are among these. "To the best" is to the best of those that pass.

It prints a Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from subjects import SUBJECTS, Model

from lightship.types import Verdict
from lightship.validate.checks.fidelity import check_fidelity
from lightship.validate.fidelity import Fidelity, FidelityBudget, FidelityMeter

BATCHES = (1, 2, 4, 8, 16, 32)
THREADS = (1, 2)
CALIBRATION = 64
TIMED, JUDGED = 64, 600  # rows
ALPHA = 0.05
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contestant:
    """A model's file with what runs it."""

    name: str
    kind: str
    model: Path
    precision: str = "f32"
    note: str = ""

    @cached_property
    def way(self) -> tuple[str, str, bytes]:
        """What is run: contestants that run the same bytes in the same way are one."""
        weights = self.model.with_suffix(".bin")  # of OpenVINO's format, whose .xml names places in it only
        data = self.model.read_bytes() + (weights.read_bytes() if self.model.suffix == ".xml" else b"")
        return self.kind, self.precision, hashlib.sha256(data).digest()


def ort_dynamic(source: Path, target: Path, *, per_channel: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=per_channel)


def ort_static(source: Path, target: Path, rows: dict[str, np.ndarray], *, activations: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{k: v[i : i + 1] for k, v in rows.items()} for i in range(CALIBRATION)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def nncf_static(source: Path, target: Path, rows: dict[str, np.ndarray]) -> None:
    from lightship.engine.openvino_library import load_nncf, load_openvino

    openvino, nncf = load_openvino(), load_nncf()
    batches = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(CALIBRATION)]
    kind = nncf.ModelType.TRANSFORMER if "input_ids" in rows else None
    model = openvino.Core().read_model(source)
    openvino.save_model(
        nncf.quantize(model, nncf.Dataset(batches), subset_size=CALIBRATION, model_type=kind), target, False
    )


def nncf_weights(source: Path, target: Path) -> None:
    from lightship.engine.openvino_library import load_nncf, load_openvino

    openvino, nncf = load_openvino(), load_nncf()
    model = nncf.compress_weights(openvino.Core().read_model(source), mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, target, False)


def by_hand(folder: Path, calibration: dict[str, np.ndarray]) -> list[Contestant]:
    """Make what a person would make with each tool; what a tool cannot do is said."""
    source = folder / "model.onnx"
    makers: dict[str, tuple[str, str, Callable[[Path], None]]] = {
        "ONNX Runtime dynamic int8": (
            "onnxruntime",
            "dynamic.onnx",
            lambda t: ort_dynamic(source, t, per_channel=False),
        ),
        "ONNX Runtime dynamic int8 per channel": (
            "onnxruntime",
            "channel.onnx",
            lambda t: ort_dynamic(source, t, per_channel=True),
        ),
        "ONNX Runtime static QDQ U8S8": (
            "onnxruntime",
            "u8s8.onnx",
            lambda t: ort_static(source, t, calibration, activations="QUInt8"),
        ),
        "ONNX Runtime static QDQ S8S8": (
            "onnxruntime",
            "s8s8.onnx",
            lambda t: ort_static(source, t, calibration, activations="QInt8"),
        ),
        "NNCF int8 on OpenVINO": ("openvino", "nncf.xml", lambda t: nncf_static(source, t, calibration)),
        "NNCF int8 weights on OpenVINO": ("openvino", "weights.xml", lambda t: nncf_weights(source, t)),
    }
    made = [
        Contestant("PyTorch eager", "torch", source),
        Contestant("ONNX Runtime", "onnxruntime", source),
        Contestant("OpenVINO fp32", "openvino", source),
        Contestant("OpenVINO bf16", "openvino", source, "bf16"),
    ]
    for name, (kind, file, make) in makers.items():
        try:
            if not (folder / file).exists():
                make(folder / file)
            made.append(Contestant(name, kind, folder / file))
        except Exception as exc:  # noqa: BLE001 - a tool that fails is a result
            print(f"{name}: {type(exc).__name__}: {str(exc)[:200]}", file=sys.stderr)
    return made


def also(name: str, file: str) -> Contestant:
    """Return a file of another tool, with what runs it."""
    return Contestant(name, "openvino" if file.endswith(".xml") else "onnxruntime", Path(file))


def by_command(model: Model, folder: Path, *, objective: str, minutes: float) -> Contestant:
    """Import and optimize as a person would, and take what was released out of the store."""
    from lightship.data.home import Home
    from lightship.registry.releases import read_release

    home = folder / f"home-{objective}"
    kept = folder / f"search-{objective}.json"
    if not kept.exists():
        kept.write_text(json.dumps(searched(model, folder, home, objective=objective, minutes=minutes), indent=1))
    found = json.loads(kept.read_text())
    bundle = read_release(Home(home), f"m:{found['version'] or 1}").bundle
    variant = bundle.manifest.variant(bundle.manifest.default)
    path = folder / f"command-{objective}.onnx"
    path.write_bytes(bundle.read(variant.graph))
    precision = str(variant.options.get("precision", "f32"))
    return Contestant(f"lightship optimize, {objective}", variant.engine, path, precision, found["chosen"])


def searched(model: Model, folder: Path, home: Path, *, objective: str, minutes: float) -> dict:
    """Return what the command says."""
    rows = folder / "rows.npz"
    np.savez(rows, **model.rows)
    upto = [part for name, size in model.upto.items() for part in ("--upto", f"{name}={size}")]
    golden = folder / "golden.npz"
    np.savez(golden, **{name: array[:8] for name, array in model.rows.items() if name != "label"})
    _lightship(home, "import", folder / "model.onnx", "--name", "m", "--golden", golden, *upto)
    said = _lightship(home, "optimize", "m:1", "--data", rows, "--objective", objective, "--minutes", minutes, "--json")
    return json.loads(said)


def _lightship(home: Path, *arguments: object) -> str:
    import os

    command = [sys.executable, "-m", "lightship.cli.main", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "LIGHTSHIP_HOME": str(home)}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def measure(contestant: Contestant, model: Model, folder: Path, *, first: bool, seconds: float) -> dict:
    answers = folder / f"{contestant.name.replace(' ', '-')}.npy"
    job = {
        "kind": contestant.kind,
        "model": str(contestant.model),
        "rows": str(folder / "timed.npz"),
        "judged": str(folder / "judged.npz") if first else None,
        "batches": [batch for batch in BATCHES if batch <= model.upto.get("batch", BATCHES[-1])],
        "threads": THREADS,
        "precision": contestant.precision,
        "seconds": seconds,
        "answers": str(answers),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, str(HERE / "contestant.py"), str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2][:300])
    return json.loads(done.stdout)


def table(contestants: list[Contestant], found: dict[str, list[dict]], folder: Path) -> None:
    base = np.load(folder / "ONNX-Runtime.npy")
    ran = {each.name: first_of(each, contestants).name for each in contestants}
    ran = {name: first for name, first in ran.items() if found[first]}
    alike = {first: fidelity(base, np.load(folder / f"{first.replace(' ', '-')}.npy")) for first in set(ran.values())}
    passed = [first for first, one in alike.items() if passes(one)] or list(alike)
    eager = _middle(found["PyTorch eager"], "rows_per_s")  # 0: it has an operator that eager.py does not know
    quickest = min(_middle(found[first], "p50_ms") for first in passed)
    busiest = max(_middle(found[first], "rows_per_s") for first in passed)
    print("| contestant | p50 ms | to the best | rows/s (batch) | to the best | to eager | cosine (≥) | passes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for each in contestants:
        if each.name not in ran:
            continue
        runs, one = found[ran[each.name]], alike[ran[each.name]]
        rate = _middle(runs, "rows_per_s")
        print(
            f"| {each.name}{f' ({each.note})' if each.note else ''} | {_spread(runs, 'p50_ms', '.3g')} "
            f"| {quickest / _middle(runs, 'p50_ms'):.2f} | {_spread(runs, 'rows_per_s', '.4g')} ({runs[0]['batch']}) "
            f"| {rate / busiest:.2f} | {f'{rate / eager:.2f}' if eager else '-'} "
            f"| {one.cosine.estimate:.4f} ({one.cosine.low:.4f}) | {'yes' if passes(one) else 'no'} |"
        )


def fidelity(base: np.ndarray, other: np.ndarray) -> Fidelity:
    """Return how alike two contestants' answers are."""
    meter = FidelityMeter()
    meter.add({"answers": base}, {"answers": other})
    return meter.result(confidence=1 - 2 * ALPHA)


def passes(found: Fidelity) -> bool:
    """Return whether the command's gate would pass a variant with such answers."""
    evidence = check_fidelity(found, budget=FidelityBudget(), subjects={}, alpha=ALPHA)
    return evidence.verdict is Verdict.PASSED


def first_of(contestant: Contestant, contestants: list[Contestant]) -> Contestant:
    """Return the one that stands for all that are the same, such as the reference if the command keeps it."""
    return next(each for each in contestants if each.way == contestant.way)


def is_near(name: str, found: dict[str, list[dict]]) -> bool:
    """Return whether a contestant came near the best in the first round, in calls of one row or in rows a second."""
    first = {other: runs[0] for other, runs in found.items() if runs}
    if name not in first:
        return False
    quickest = min(run["p50_ms"] for run in first.values())
    busiest = max(run["rows_per_s"] for run in first.values())
    return first[name]["p50_ms"] < 2 * quickest or first[name]["rows_per_s"] > busiest / 2


def _middle(runs: list[dict], key: str) -> float:
    return float(np.median([run[key] for run in runs])) if runs else 0.0


def _spread(runs: list[dict], key: str, form: str) -> str:
    values = [run[key] for run in runs]
    return f"{np.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def timed(
    contestants: list[Contestant], model: Model, folder: Path, *, rounds: int, seconds: float
) -> dict[str, list[dict]]:
    """Return the runs of each contestant, one a round."""
    kept = folder / "runs.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found = {each.name: found.get(each.name, []) for each in contestants}
    for number in range(rounds):
        for turn in np.random.default_rng(number).permutation(len(contestants)):
            each = contestants[int(turn)]
            if first_of(each, contestants) is not each:
                continue
            if len(found[each.name]) > number or (number and not is_near(each.name, found)):
                continue
            try:
                run = measure(each, model, folder, first=number == 0, seconds=seconds)
                found[each.name].append(run)
                kept.write_text(json.dumps(found))
            except RuntimeError as exc:
                print(f"{each.name}: {exc}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each search")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each timing process")
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=FILE", help="a file of another tool: ONNX or OpenVINO"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lightship-benchmarks")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where the files and searches stay, and are found again"
    )
    options = parser.parse_args()
    options.cache.mkdir(exist_ok=True)
    model = SUBJECTS[options.model](options.cache)
    with tempfile.TemporaryDirectory(prefix="lightship-by-hand-") as place:
        folder = options.keep or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model.graph)
        inputs = {name: array for name, array in model.rows.items() if name != "label"}
        contestants = by_hand(folder, {name: array[:CALIBRATION] for name, array in inputs.items()})
        contestants += [also(*given.split("=", 1)) for given in options.also]
        for objective in ("latency", "throughput"):
            contestants.append(by_command(model, folder, objective=objective, minutes=options.minutes))
        np.savez(folder / "timed.npz", **{name: array[-TIMED:] for name, array in inputs.items()})
        np.savez(folder / "judged.npz", **{name: array[CALIBRATION:][:JUDGED] for name, array in inputs.items()})
        found = timed(contestants, model, folder, rounds=options.rounds, seconds=options.seconds)
        table(contestants, found, folder)


if __name__ == "__main__":
    main()
