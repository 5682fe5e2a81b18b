"""Files of one model by Olive and Optimum, each in an environment of its own, as their documented commands make them.

    python -m venv olive && olive/bin/pip install olive-ai onnxruntime requests datasets torch==2.13.0
    python -m venv optimum && optimum/bin/pip install "optimum-onnx[onnxruntime]" torch==2.13.0
    python -m venv intel && intel/bin/pip install "optimum-intel[openvino]" nncf torch==2.13.0
    python benchmarks/optimize/rivals/make.py MODEL.onnx ROWS.npz OUT --olive olive --optimum optimum --intel intel

Whatever can be made lies in OUT afterward and is held against the model on the last 64 rows; what cannot is said with
the tool's own words. The last line holds the options with which `by_hand.py` takes the files in.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CALIBRATION = 64
COMPARED = 64


@dataclass(frozen=True)
class Job:
    """What every tool is given.

    Attributes:
        source: a folder with `model.onnx` alone.
        rows: calibration rows, `.npz` by the name of the input.
        work: where the tool may write.
    """

    source: Path
    rows: Path
    work: Path

    @property
    def model(self) -> Path:
        """Return the file to work on."""
        return self.source / "model.onnx"


Command = Callable[[Job, Path], list[object]]


def olive_command(*options: str) -> Command:
    return lambda job, tool: [
        tool / "olive",
        options[0],
        *("-m", job.model, "-o", job.work / "made", "--disable_telemetry"),
        *options[1:],
    ]


def olive_static(**quantization: object) -> Command:
    """A workflow file with the rows as its data: the commands take data sets of a hub alone."""

    def command(job: Job, tool: Path) -> list[object]:
        data = {
            "name": "rows",
            "user_script": str(HERE / "olive_rows.py"),
            "load_dataset_config": {"type": "npz_rows", "path": str(job.rows)},
            "dataloader_config": {"batch_size": 1},
        }
        processor = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        workflow = {
            "input_model": {"type": "ONNXModel", "model_path": str(job.model)},
            "systems": {"here": {"type": "LocalSystem", "accelerators": [processor]}},
            "data_configs": [data],
            "passes": {
                "peephole": {"type": "OnnxPeepholeOptimizer"},
                "static": {"type": "OnnxStaticQuantization", "data_config": "rows", **quantization},
            },
            "host": "here",
            "target": "here",
            "output_dir": str(job.work / "made"),
            "cache_dir": str(job.work / "cache"),
            "no_artifacts": True,
        }
        (job.work / "workflow.json").write_text(json.dumps(workflow))
        return [tool / "olive", "run", "--config", job.work / "workflow.json", "--disable_telemetry"]

    return command


def optimum_command(verb: str, *options: str) -> Command:
    return lambda job, tool: [
        tool / "optimum-cli",
        *("onnxruntime", verb, "--onnx_model", job.source, "-o", job.work / "made"),
        *options,
    ]


def script(name: str, *options: str) -> Command:
    """What a tool has in Python alone."""
    return lambda job, tool: [tool / "python", HERE / name, job.source, job.rows, job.work / "made", *options]


RECIPES: dict[str, dict[str, Command]] = {
    "olive": {
        "olive-quantize": olive_command("quantize", "--precision", "int8", "--implementation", "ort"),
        "olive-auto-opt": olive_command("auto-opt", "--device", "cpu", "--precision", "int8"),
        "olive-static": olive_static(),
        "olive-static-u8s8": olive_static(activation_type="uint8", per_channel=True),
        "olive-optimize": olive_command(
            "optimize", "--provider", "CPUExecutionProvider", "--device", "cpu", "--precision", "int8"
        ),
    },
    "optimum": {
        "optimum-avx2": optimum_command("quantize", "--avx2"),
        "optimum-avx512": optimum_command("quantize", "--avx512"),
        "optimum-avx512-channel": optimum_command("quantize", "--avx512", "--per_channel"),
        "optimum-static": script("optimum_static.py"),
        "optimum-o2": optimum_command("optimize", "-O2"),
    },
    "intel": {
        "optimum-openvino-int8": script("optimum_openvino.py", "static"),
        "optimum-openvino-weights": script("optimum_openvino.py", "weights"),
    },
}


def run(command: list[object], work: Path, limit_s: float) -> str:
    """Return an empty text, or the last words of a tool that failed."""
    # No hub can be reached, and one that is waited for would cost minutes.
    around = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HOME": str(work)}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=work,
            env=around,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {limit_s:.0f} s"
    (work / "log.txt").write_text(done.stdout + done.stderr)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "rror:" in line]
    return (errors or lines or ["nothing said"])[-1].strip()[:400] if done.returncode else ""


def make(name: str, command: Command, tool: Path, job: Job, out: Path, limit_s: float) -> Path | str:
    """Return the file that the tool left in OUT, or why there is none."""
    started = time.monotonic()
    said = run(command(job, tool / "bin"), job.work, limit_s)
    made = [path for ending in ("*.onnx", "*.xml") for path in sorted((job.work / "made").rglob(ending))]
    if said or not made:
        return said or f"no model was left; the end of its log: {_end_of(job.work / 'log.txt')}"
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    target = out / f"{name}{made[0].suffix}"
    shutil.copyfile(made[0], target)
    for beside in made[0].parent.iterdir():  # weights beside the graph are found by their own name
        if beside.suffix == ".bin":
            shutil.copyfile(beside, target.with_suffix(".bin"))
        elif beside.name.endswith(".data"):
            shutil.copyfile(beside, out / beside.name)
    return target


def _end_of(log: Path) -> str:
    return " / ".join(log.read_text().strip().splitlines()[-2:])[:400]


def answers(model: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    if model.suffix == ".xml":
        from lightship.engine.openvino_library import load_openvino

        compiled = load_openvino().Core().compile_model(model, "CPU")
        found = [compiled({k: v[i : i + 1] for k, v in rows.items()})[0] for i in range(COMPARED)]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        found = [session.run(None, {k: v[i : i + 1] for k, v in rows.items()})[0] for i in range(COMPARED)]
    return np.concatenate([np.asarray(each, np.float64).reshape(1, -1) for each in found])


def fidelity(base: np.ndarray, other: np.ndarray) -> str:
    norms = np.linalg.norm(base, axis=1) * np.maximum(np.linalg.norm(other, axis=1), 1e-30)
    noise = max(((base - other) ** 2).sum(), 1e-30)
    return f"cosine {((base * other).sum(1) / norms).mean():.4f}, SNR {10 * np.log10((base**2).sum() / noise):.1f} dB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    for tool in RECIPES:
        parser.add_argument(f"--{tool}", type=Path, metavar="ENV", help="its virtual environment")
    parser.add_argument("--only", action="append", metavar="NAME", help="these recipes alone")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for one command")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = {name: array for name, array in np.load(options.rows).items() if name != "label"}
    base = answers(options.model, {name: array[-COMPARED:] for name, array in rows.items()})
    also = []
    for tool, recipes in RECIPES.items():
        if (env := getattr(options, tool)) is None:
            continue
        for name, command in recipes.items():
            if options.only and name not in options.only:
                continue
            with tempfile.TemporaryDirectory(prefix="lightship-rivals-") as place:
                job = Job(Path(place) / "source", Path(place) / "rows.npz", Path(place) / "work")
                job.source.mkdir()
                job.work.mkdir()
                shutil.copyfile(options.model, job.model)
                np.savez(job.rows, **{each: array[:CALIBRATION] for each, array in rows.items()})
                made = make(name, command, env.absolute(), job, options.out, options.limit)
            if isinstance(made, str):
                print(f"{name}: FAILED: {made}", flush=True)
                continue
            try:
                found = answers(made, {each: array[-COMPARED:] for each, array in rows.items()})
            except Exception as exc:  # noqa: BLE001 - a file that nothing runs is a result
                print(f"{name}: made, but does not run: {str(exc)[:300]}", flush=True)
                continue
            print(f"{name}: {made} {made.stat().st_size / 1e6:.1f} MB, {fidelity(base, found)}", flush=True)
            also.append(f"--also {name}={made}")
    print(" ".join(also))


if __name__ == "__main__":
    main()
