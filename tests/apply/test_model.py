"""A released model in this process: verified, self-tested, answering."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from tests.apply.conftest import TASK, gray, logits_of, release

import lightship
from lightship.apply import images
from lightship.apply.model import load
from lightship.bundle.manifest import Variant
from lightship.data.home import Home
from lightship.errors import BundleRefused, InvalidInput, InvalidMedia, LightshipError, NotFound, TooLarge
from lightship.registry.resolve import resolve


@pytest.fixture(scope="module")
def model(shared_home):
    """Return the loaded model."""
    with load("shades", home=shared_home) as loaded:
        yield loaded


@pytest.fixture
def home(tmp_path) -> Home:
    """Return a home that the test may spoil."""
    return Home(tmp_path / "home")


def blob(home: Home, path: str):
    """Return where a file of the bundle ``shades:1`` stands in the store."""
    from lightship.bundle.store import BlobStore, StoredBundle

    bundle = StoredBundle(BlobStore(home.store), resolve(home, "shades").bundle)
    return home.store / "blobs" / "sha256" / bundle.manifest.file(path).sha256


def test_an_image_gets_its_answer(model):
    """The label, and every probability as the formula gives it."""
    for value, label in [(0, "dark"), (128, "middle"), (255, "light")]:
        answer = model.predict(gray(value))
        powers = np.exp(logits_of([gray(value)])[0].astype(np.float64))

        assert (answer.label, answer.model, answer.version, answer.request_id) == (label, "shades", 1, None)
        expected = dict(zip(TASK.labels, powers / powers.sum(), strict=True))
        assert dict(answer.probabilities) == pytest.approx(expected, abs=1e-6)
        assert answer.probability == answer.probabilities[label] == max(answer.probabilities.values())


def test_an_image_may_be_bytes_a_path_or_an_array(model, png):
    """The same pixels give the same answer, however they come."""
    answers = [
        model.predict(image) for image in (gray(250), png, str(png), png.read_bytes(), bytearray(png.read_bytes()))
    ]

    assert all(answer == answers[0] for answer in answers)


def test_many_images_are_answered_in_order(model):
    """Also when there are more than the graph was proven for at once, and when they come one by one."""
    values = [0, 255, 128, 255, 0, 0, 128, 255, 0, 128, 255]
    expected = [model.predict(gray(value)).label for value in values]

    for batch_rows in (1, 2, 5, 32):
        answers = model.predict_many((gray(value) for value in values), batch_rows=batch_rows)
        assert [answer.label for answer in answers] == expected
    assert model.predict_many([]) == []


def test_no_batch_is_larger_than_what_was_proven(shared_home):
    """The release was tested up to five rows."""
    sizes = []
    with load("shades", home=shared_home) as model:
        run = model._runner.run
        model._runner.run = lambda inputs: sizes.append(len(inputs["image"])) or run(inputs)
        model.predict_many([gray(1)] * 12)

    assert sizes == [5, 5, 2]


def test_a_bad_image_is_named(model, tmp_path):
    """By its place among many; alone it needs no number."""
    with pytest.raises(InvalidMedia, match=r"^Image 2 \(counted from 0\): "):
        model.predict_many([gray(1), gray(2), b"\x89PNG\r\n\x1a\nbroken" * 3])
    with pytest.raises(InvalidMedia, match=r"^(?!Image 0)"):
        model.predict(b"")
    with pytest.raises(NotFound, match=r"There is no file .*none\.png"):
        model.predict(tmp_path / "none.png")
    with pytest.raises(InvalidInput, match="`batch_rows`"):
        model.predict_many([gray(1)], batch_rows=0)


def test_the_package_has_the_verb(shared_home, monkeypatch):
    """``lightship.load`` finds the home by the environment."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(shared_home.root))
    with lightship.load("shades@production") as model:
        assert (model.name, model.version, model.labels) == ("shades", 1, TASK.labels)
        assert repr(model) == "Model(shades:1, image-classification, variant 'reference')"


def test_a_closed_model_says_so(shared_home):
    """Not a crash in the engine."""
    model = load("shades", home=shared_home.root)
    model.close()
    model.close()

    with pytest.raises(LightshipError, match="was closed"):
        model.predict(gray(1))


def test_one_changed_bit_of_the_graph_is_refused(home):
    """What runs is what was released."""
    release(home)
    path = blob(home, "variants/reference/model.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(BundleRefused, match=r"variants/reference/model\.onnx"):
        load("shades", home=home)


def test_a_missing_graph_is_refused_by_name(home):
    """A store that was not copied whole is no reason for a traceback."""
    release(home)
    blob(home, "variants/reference/model.onnx").unlink()

    with pytest.raises(BundleRefused, match="'reference', the variant that shades:1 runs, are missing"):
        load("shades", home=home)


def test_a_signer_that_this_home_does_not_trust_is_refused(home):
    """A release is worth what its signer is."""
    release(home)
    for key in home.trust.iterdir():
        key.unlink()

    with pytest.raises(BundleRefused, match="trust"):
        load("shades", home=home)


def test_another_bundle_under_a_good_release_is_refused(home):
    """Who can write the registry cannot have another bundle run, not even one that is in the store."""
    release(home)
    release(home, name="other", config={**TASK.config(), "labels": ["light", "middle", "dark"]})
    swap = (
        "UPDATE versions SET bundle = (SELECT bundle FROM versions ORDER BY model_id DESC LIMIT 1) WHERE model_id = 1"
    )
    with closing(sqlite3.connect(home.registry)) as connection, connection:
        connection.execute("DROP TRIGGER versions_no_update")
        connection.execute(swap)

    with pytest.raises(BundleRefused, match=r"The registry says .* its signed release .* One of them was changed"):
        load("shades", home=home)


def test_a_release_of_another_name_is_refused(home):
    """A good release may not stand under a name that it does not carry."""
    release(home)
    release(home, name="other", config={**TASK.config(), "labels": ["light", "middle", "dark"]})
    with closing(sqlite3.connect(home.registry)) as connection, connection:
        connection.execute("DROP TRIGGER versions_no_update")
        connection.execute("UPDATE versions SET bundle = 'x' WHERE model_id = 1")
        connection.execute(
            "UPDATE versions SET (bundle, release) = (SELECT bundle, release FROM versions WHERE model_id = 2) "
            "WHERE model_id = 1"
        )

    with pytest.raises(BundleRefused, match=r"shades:1 .* is of other:1"):
        load("shades", home=home)


def test_a_changed_constant_in_the_bundles_configuration_fails_the_self_test(home):
    """The mean is 0.4 where the model was trained with 0.5: every signature is good, and the answers are not."""
    release(home, config={**TASK.config(), "mean": ["0.4"]})

    with pytest.raises(BundleRefused, match=r"self-test of variant 'reference' failed .* golden/0\.png"):
        load("shades", home=home)


def test_a_changed_constant_in_the_code_fails_the_self_test(home, monkeypatch):
    """The same for the code that encodes."""
    release(home)
    monkeypatch.setattr("lightship.tasks.image_classification.PIXEL_MAX", 256.0)

    with pytest.raises(BundleRefused, match="self-test of variant 'reference' failed"):
        load("shades", home=home)


def test_loading_needs_neither_torch_nor_sqlalchemy(shared_home):
    """Prediction belongs to the light core."""
    program = (
        "import sys, lightship, numpy\n"
        "with lightship.load('shades') as model: print(model.predict(numpy.full((8, 8), 250, 'uint8')).label)\n"
        "print([m for m in ('torch', 'sqlalchemy', 'alembic', 'scipy', 'sklearn', 'httpx') if m in sys.modules])"
    )
    environment = {**os.environ, "LIGHTSHIP_HOME": str(shared_home.root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )

    assert done.stdout.splitlines() == ["light", "[]"]


def test_a_home_may_be_a_path_as_text(shared_home):
    """As for ``lightship.ship``."""
    with load("shades", home=str(shared_home.root)) as loaded:
        assert loaded.name == "shades"


def test_a_file_without_end_is_refused(model, monkeypatch):
    """A device gives bytes for ever: no more than the limit is read."""
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)

    with pytest.raises(TooLarge, match="'/dev/zero' may have at most 1000 bytes"):
        model.predict("/dev/zero")


@pytest.mark.parametrize(
    ("engine", "off", "why"),
    [("onnxruntime", 1.0, "self-test of variant 'proposed' failed"), ("tomorrow", 0.0, "'tomorrow' is among")],
    ids=["golden", "engine"],
)
def test_the_reference_is_used_where_the_proposed_variant_fails(tmp_path, caplog, engine, off, why):
    """With a warning that says why; a caller who wants no other gets the error."""
    home = Home(tmp_path)
    examples = [gray(value) for value in (0, 120, 255)]
    proposed = Variant("proposed", engine, "variants/proposed/model.onnx", "fp32", {}, ())
    release(home, golden=logits_of(examples) + np.float32(off), proposed=proposed)

    with load("shades", home=home) as model:
        assert model.variant == "reference"
        assert model.predict(gray(255)).label == model.labels[-1]
    assert "shades:1 falls back to its reference" in caplog.text
    assert why in caplog.text
    with pytest.raises(LightshipError, match=why):
        load("shades", home=home, strict_variant=True)
