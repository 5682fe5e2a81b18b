"""``lightship import`` and what may become of an imported model: version, consent, history, answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.imports.conftest import attention, info, linear, model, node, texts

import lightship
from lightship.bundle.signing import TrustStore
from lightship.bundle.store import BlobStore
from lightship.bundle.verify import verify_stored
from lightship.cli.main import cli
from lightship.errors import (
    BundleRefused,
    GateRefused,
    InvalidInput,
    InvalidTensor,
    NotFound,
    Refused,
    UnsupportedMedia,
)
from lightship.pipeline.imported import import_model
from lightship.registry.database import open_database

WEIGHT = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)


@pytest.fixture
def run(home):
    """Return a function that runs a command line in ``home``; a known error is raised, as main() gets it."""

    def run_one(*arguments: object):
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run_one


def test_an_imported_model_says_what_is_proven_and_what_is_not(run, write, home):
    """The signed release is structural: five pieces of evidence, two of them unproven."""
    done = run("import", write(linear()), "--name", "m1", "--json")

    said = json.loads(done.stdout)
    assert (said["name"], said["version"], said["is_new"], said["alias"]) == ("m1", 1, True, None)
    assert said["proven"] == {"batch": [1, 32]}
    assert said["unproven"] == ["accuracy", "parity"]
    verified = verify_stored(BlobStore(home.store), said["release"], trust=TrustStore(home.trust))
    assert verified.status == "structural"
    assert [(each.check, str(each.verdict)) for each in verified.evidence] == [
        ("audit", "passed"),
        ("golden", "passed"),
        ("shapes", "passed"),
        ("accuracy", "unproven"),
        ("parity", "unproven"),
    ]


def test_text_tells_what_to_type_next(run, write):
    """Both ways on stand there: try it as it is, or accept it."""
    done = run("import", write(linear()), "--name", "m1")

    assert "Imported m1:1" in done.stdout
    assert "lightship serve m1:1 " in done.stdout
    assert "lightship promote m1:1 --accept-unproven" in done.stdout
    assert "Try batch sizes and shapes" in done.stderr
    assert run("import", write(linear()), "--name", "m1", "--quiet").stderr == ""


def test_a_fixed_size_is_the_only_one(run, write, home):
    """The graph itself says it: its answers are the same there, and no other size is asked for."""
    path, ids = write(attention()), np.random.default_rng(4).integers(0, 100, (2, 12))
    rows = {"input_ids": ids, "attention_mask": np.ones((2, 12), np.int64)}
    run("import", path, "--name", "free", "--upto", "seq=12")

    said = json.loads(run("import", path, "--name", "fixed", "--fix", "seq=12", "--json").stdout)

    assert said["proven"] == {"batch": [1, 32]}
    with lightship.load("free:1", home=home) as free, lightship.load("fixed:1", home=home) as fixed:
        assert [spec.shape for spec in fixed.interface.inputs] == [("batch", 12)] * 2
        np.testing.assert_allclose(fixed.predict(rows)["pooled"], free.predict(rows)["pooled"], rtol=1e-6)
        with pytest.raises(InvalidTensor, match="12"):
            fixed.predict({name: array[:, :8] for name, array in rows.items()})


def test_a_size_without_a_name_can_be_fixed(write, home):
    """By the name that an import gives it; a name that is not there is refused, with those that are."""
    mean = [node("ReduceMean", ["x", "axis"], ["y"], keepdims=0)]
    path = write(model(mean, [info("x", ["n", None, 4])], [info("y", ["n", 4])], {"axis": np.array([1])}))

    imported = import_model(path, name="mean", fix={"d0": 6}, home=home)

    assert imported.interface.inputs[0].shape == ("batch", 6, 4)
    assert imported.interface.proven == {"batch": (1, 32)}
    with pytest.raises(InvalidInput, match=r"no free dimension 'len' \(--fix\).*Free are: 'n', 'd0'"):
        import_model(path, name="mean", fix={"len": 6}, home=home)
    with pytest.raises(InvalidInput, match=r"The one size of 'd0' must be a whole number in \[1, 1000000\]. Got 0"):
        import_model(path, name="mean", fix={"d0": 0}, home=home)


def test_what_must_be_as_large_as_a_fixed_size_is(write, home):
    """A mask without a name, of which only the ids were fixed: one of a single token would run too, for all of them."""
    graph = onnx.load_from_string(attention())
    for value in graph.graph.input:
        value.type.tensor_type.shape.dim[1].ClearField("dim_param")

    imported = import_model(write(graph.SerializeToString()), name="m1", fix={"d0": 12}, home=home)

    assert [spec.shape for spec in imported.interface.inputs] == [("batch", 12), ("batch", "d0")]
    assert imported.interface.proven == {"batch": (1, 32), "d0": (12, 12)}


def test_the_same_file_is_the_same_version(run, write):
    """Also in another home: nothing of time, place or chance is in the bundle."""
    path = write(attention())
    first = json.loads(run("import", path, "--name", "m1", "--upto", "seq=12", "--json").stdout)

    again = json.loads(run("import", path, "--name", "m1", "--upto", "seq=12", "--json").stdout)
    elsewhere = import_model(path, name="other", upto={"seq": 12}, home=path.parent / "elsewhere")

    assert (again["version"], again["is_new"], again["bundle"]) == (1, False, first["bundle"])
    assert elsewhere.bundle == first["bundle"]


def test_no_road_leads_an_unproven_model_to_production_without_consent(run, write, home):
    """Import, serve, promote, an alias in between, rollback: each asks, and says what to type."""
    run("import", write(linear()), "--name", "m1")
    with pytest.raises(NotFound, match=r"m1:1 was released unproven.*`lightship promote m1:1 --accept-unproven`"):
        lightship.load("m1")
    with pytest.raises(GateRefused, match="--accept-unproven"):
        run("promote", "m1:1")
    with pytest.raises(GateRefused, match="--accept-unproven"):
        run("promote", "m1:1", "--alias", "staging")

    run("promote", "m1:1", "--accept-unproven", "--why", "trial")

    with open_database(home) as registry:
        assert registry.alias("m1").version == 1
        last = registry.history("m1").entries[-1]
        assert (last.action, last.why) == ("promote", "trial [accepted as unproven]")
        assert registry.verify_history().ok


def test_whoever_uses_an_unproven_version_is_told(run, write, tmp_path):
    """By its number and after consent; on stderr, so that what is read by programs stays what it is."""
    run("import", write(linear()), "--name", "m1", "--accept-unproven")
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=np.ones((2, 4), np.float32))
    note = "m1:1 is unproven: how good its answers are was not measured. See `lightship show m1:1`."

    for reference in ("m1", "m1:1"):
        for options in ((), ("--json",)):
            done = run("predict", reference, rows, *options)
            assert done.stderr.count(note) == 1
            assert note not in done.stdout
        done = run("deploy", reference, "--to", "folder", "--out", tmp_path / reference)
        assert note in done.stderr
        assert done.stdout.startswith("Wrote m1:1 to ")
    assert lightship.load("m1").unproven


def test_consent_at_the_import_makes_it_production(run, write, home):
    """Only the first; who accepted it stands in the history."""
    said = json.loads(run("import", write(linear()), "--name", "m1", "--accept-unproven", "--json").stdout)
    second = json.loads(run("import", write(linear(features=5)), "--name", "m1", "--accept-unproven", "--json").stdout)

    assert (said["alias"], second["version"], second["alias"]) == ("production", 2, None)
    with open_database(home) as registry:
        accepted = [entry for entry in registry.history("m1").entries if entry.alias == "production"]
        assert [(entry.version, entry.why) for entry in accepted] == [(1, "first version [accepted as unproven]")]
        assert accepted[0].who
    assert "production=1\t1 2" in run("models").stdout
    assert "unproven: accuracy, parity was not measured" in run("show", "m1:2").stdout
    assert "structural" in run("verify", "m1").stdout


BAD = {
    "text": b"not a model at all",
    "cut short": linear(features=64)[:200],
    "foreign": model(
        [node("Evil", ["x"], ["y"], domain="evil")], [info("x", ["N"])], [info("y", ["N"])], domains=["evil"]
    ),
    "never runs": model(
        [node("Reshape", ["x", "shape"], ["y"])], [info("x", [2, 3])], [info("y", [4])], {"shape": np.array([4])}
    ),
    "random": model([node("RandomUniformLike", ["x"], ["y"])], [info("x", ["N", 2])], [info("y", ["N", 2])]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_leaves_nothing_behind(run, write, home, tmp_path, monkeypatch, name):
    """No version, no blob, no temporary file; the exit code is that of bad input or a refusal."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    with pytest.raises((InvalidInput, Refused)):
        run("import", write(BAD[name]), "--name", "m1")

    assert list(temporary.iterdir()) == []
    blobs = [path for path in home.root.rglob("*") if path.is_file() and path.name not in {"lock"}]
    assert blobs == []


def test_a_bad_name_is_refused_before_the_file_is_read(run, tmp_path):
    """It costs nothing to look."""
    with pytest.raises(InvalidInput, match="A model's name must be"):
        run("import", tmp_path / "none.onnx", "--name", "Bad Name")


@pytest.mark.parametrize("bad", ["batch", "batch=", "=3", "batch=x", "batch=-1"])
def test_a_bound_that_is_none_is_a_usage_error(run, write, bad):
    """Exit code 2, and what a bound looks like."""
    done = run("import", write(linear()), "--name", "m1", "--upto", bad)

    assert done.exit_code == 2
    assert "must be DIM=SIZE" in done.output


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("bach=4", "did you mean 'batch'"),
        ("sek=9", "did you mean 'seq'"),
        ("hidden=9", "Free are: 'batch', 'batch_size', 'seq'."),
    ],
)
def test_a_bound_of_a_dimension_that_is_not_there_is_refused(run, write, home, bad, message):
    """A misspelled one would go unnoticed."""
    with pytest.raises(InvalidInput, match=message):
        run("import", write(attention()), "--name", "m1", "--upto", bad)


def test_golden_rows_come_from_a_file(run, write, tmp_path):
    """They are the bundle's examples, and other rows are another bundle."""
    np.savez(tmp_path / "rows.npz", x=np.arange(12, dtype=np.float32).reshape(3, 4))

    said = json.loads(
        run("import", write(linear()), "--name", "m1", "--golden", tmp_path / "rows.npz", "--json").stdout
    )

    golden = next(row for row in said["evidence"] if row["check"] == "golden")
    assert golden["summary"].startswith("3 golden examples (given)")


def test_predict_answers_a_file_of_tensors(run, write, tmp_path):
    """40 rows through batches of at most 32; the outputs can be kept."""
    run("import", write(linear()), "--name", "m1", "--accept-unproven")
    rows = np.random.default_rng(5).normal(size=(40, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)

    done = run("predict", "m1", tmp_path / "rows.npz", "--out", tmp_path / "out.npz")
    answer = json.loads(run("predict", "m1", tmp_path / "rows.npz", "--json").stdout)

    assert done.stdout.splitlines()[1].split("\t")[1:4] == ["y", "FP32", "40x2"]
    with np.load(tmp_path / "out.npz") as kept:
        np.testing.assert_allclose(kept["y"], rows @ WEIGHT, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer["outputs"]["y"]["data"], rows @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_a_model_in_this_process_takes_arrays(write, home):
    """Texts too; what was not proven is refused, and so is an image."""
    import_model(write(texts()), name="m1", accept_unproven=True)

    with lightship.load("m1") as loaded:
        given = loaded.predict({"city": np.array(["yes", "no"]), "size": np.ones((2, 3), np.float32)})
        assert given["group"].tolist() == ["second", "third"]
        assert given["total"].tolist() == [[3.0], [3.0]]
        with pytest.raises(InvalidTensor, match=r"takes the inputs 'city', 'size'\. Got 'town'"):
            loaded.predict({"town": np.array(["a"])})
        with pytest.raises(InvalidTensor, match=r"axis 0 \(batch\) is 2 elsewhere"):
            loaded.predict({"city": np.array(["a", "b"]), "size": np.ones((3, 3), np.float32)})
        with pytest.raises(UnsupportedMedia, match="takes tensors, no images"):
            loaded.predict(b"\x89PNG\r\n\x1a\n")


def test_a_size_that_was_not_tried_is_refused(write, home):
    """A server would say the same."""
    import_model(write(attention()), name="m1", upto={"seq": 10}, accept_unproven=True)
    ids = np.ones((1, 11), np.int64)

    with lightship.load("m1") as loaded, pytest.raises(InvalidTensor, match=r"\(seq\) was proven for 1 to 10"):
        loaded.predict({"input_ids": ids, "attention_mask": ids})


def test_golden_examples_that_come_out_otherwise_stop_a_load(write, home, monkeypatch):
    """Here the engine lies a little; on another machine it might."""
    import_model(write(linear()), name="m1", accept_unproven=True)
    from lightship.engine.onnx_runtime import OnnxRuntimeEngine

    honest = OnnxRuntimeEngine.run
    monkeypatch.setattr(
        OnnxRuntimeEngine, "run", lambda self, inputs: {k: v + 0.01 for k, v in honest(self, inputs).items()}
    )

    with pytest.raises(BundleRefused, match=r"golden/inputs/000\.npz must give the expected 'y' within"):
        lightship.load("m1")


def test_the_command_exits_with_the_code_of_its_error(write, home):
    """As people and scripts run it: one message on stderr, no traceback."""
    command = [sys.executable, "-m", "lightship.cli.main", "import", str(write(b"nonsense")), "--name", "m1"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))

    assert done.returncode == 2
    assert re.fullmatch(r"Error: The file .* is of no format that is read here \(onnx\).*\n", done.stderr)


def test_a_wide_file_may_be_reached_through_a_link(write, home, tmp_path):
    """Model hubs keep files behind links; the one whom the person named may be one."""
    (tmp_path / "link.onnx").symlink_to(write(linear()))

    assert import_model(Path(tmp_path / "link.onnx"), name="m1").is_new


def test_names_of_dimensions_that_no_line_can_hold_are_replaced(write, home):
    """A line break or 300 characters: legal in a file, not in a bundle, an evidence or a terminal."""
    long = "d" * 300
    graph = model([node("Relu", ["x"], ["y"])], [info("x", ["N", "a\nb", long])], [info("y", ["N", "a\nb", long])])

    imported = import_model(write(graph), name="m1", upto={"a\nb": 9, long: 9})

    shape = imported.interface.inputs[0].shape
    assert shape[0] == "batch"
    assert all(str(dim).isprintable() and len(str(dim)) <= 64 for dim in shape)
    assert imported.interface.outputs[0].shape == shape
    assert set(imported.interface.proven.values()) == {(1, 32), (1, 9)}
