"""From ten lines and a folder of images to a signed release; a second run; the same work in another home."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightship.bundle.signing import TrustStore
from lightship.bundle.store import BlobStore
from lightship.bundle.verify import verify_stored
from lightship.data.home import Home
from lightship.pipeline.ship import optimize, ship
from lightship.registry.database import open_database

STAGES = ["prepare", "train", "optimize", "validate", "release"]


def test_ten_lines_ship_a_folder_of_images(shipped):
    """A folder of images by class becomes version 1, whatever the classes are called."""
    assert shipped.ran.code == 0, shipped.ran.err
    answer = shipped.answer

    home = Home(shipped.home)
    store = BlobStore(home.store)
    verified = verify_stored(store, answer["release"], trust=TrustStore(home.trust))
    assert len(shipped.recipe.read_text(encoding="utf-8").splitlines()) == 10
    assert (answer["name"], answer["version"], answer["is_new"]) == ("shapes", 1, True)
    assert str(verified.bundle) == answer["bundle"]
    with open_database(home, read_only=True) as registry:
        assert registry.alias("shapes").bundle == answer["bundle"]
        assert not registry.verify_history().problems


def test_class_names_reach_bundle_and_report(shipped):
    """Spaces and letters beyond ASCII in class names are kept everywhere."""
    prepared = json.loads((shipped.stage("prepare") / "prepared.json").read_bytes())
    report = json.loads((shipped.run / "report.json").read_bytes())
    page = (shipped.run / "report.html").read_text(encoding="utf-8")

    assert prepared["task"]["labels"] == ["a one", "nought", "二"]
    assert [each["label"] for each in report["per_class"]] == ["a one", "nought", "二"]
    assert "二" in page
    assert len(list((shipped.run / "held-out").iterdir())) == 3


def test_second_ship_skips_every_stage(site, shipped, lightship):
    """Nothing changed, so nothing runs, and the command says so."""
    before = {path.parent.name: path.stat().st_mtime_ns for path in site.run.glob("*/stage.json")}
    first = lightship("ship", site.recipe, home=site.home)  # a copied home has another store: release is new there

    second = lightship("ship", site.recipe, home=site.home)

    assert (first.code, second.code) == (0, 0)
    assert second.out.count("unchanged, skipped") == len(STAGES)
    assert "Released shapes:1  (unchanged)" in second.out
    assert shipped.answer["bundle"] in second.out
    kept = {
        name: mark
        for name in before
        if name.rpartition("-")[0] in STAGES
        and not name.startswith("release")
        and (mark := site.run / name / "stage.json")
    }
    assert all(mark.stat().st_mtime_ns == before[name] for name, mark in kept.items())
    assert len(kept) == len(STAGES) - 1


def test_two_homes_give_the_same_bundle(site, shipped, tmp_path):
    """Another home, another process, the same recipe: the same bundle name."""
    other = tmp_path / "other"

    result = ship(site.recipe, home=other)

    assert [stage.stage for stage in result.stages if not stage.skipped] == STAGES
    assert result.released.bundle == shipped.answer["bundle"]
    assert result.released.signer != ""
    assert result.released.release != shipped.answer["release"]  # another key signed it


def test_stage_alone_stops_after_itself(site, tmp_path, lightship):
    """``lightship optimize`` runs the stages up to itself and registers nothing."""
    home = tmp_path / "alone"
    shutil.copytree(site.home / "runs", home / "runs")
    for stage in ("optimize", "validate", "release"):
        shutil.rmtree(next((home / "runs" / "shapes").glob(f"{stage}-*")))

    ran = lightship("optimize", site.recipe, home=home)

    assert ran.code == 0, ran.err
    assert "int8-static" in ran.out
    assert not list((home / "runs" / "shapes").glob("validate-*"))
    assert not (home / "registry.db").exists()


def test_user_without_a_name_can_release(unreleased, monkeypatch):
    """In a container that runs under a bare number, the history says that number."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)

    result = ship(unreleased.recipe, home=unreleased.home)

    with open_database(Home(unreleased.home), read_only=True) as registry:
        assert registry.history("shapes").entries[0].who.startswith("uid ")
    assert result.released.version == 1


def _recorder(folder: Path) -> None:
    """Install a pass that keeps what it was shown: a module and its entry point, as a stranger's package would."""
    (folder / "keeping_pass.py").write_text(
        "import numpy\n"
        "class Keeping:\n"
        "    name, precision, needs_calibration = 'keeping', 'fp32', True\n"
        "    lossless, default, engines = True, True, ('onnxruntime',)\n"
        "    def apply(self, graph, *, calibration):\n"
        "        seen = numpy.concatenate([each['image'] for each in calibration])\n"
        f"        numpy.save({str(folder / 'seen.npy')!r}, seen)\n"
        "        return graph\n"
    )
    info = folder / "keeping_pass-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: keeping-pass\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lightship.passes]\nkeeping = keeping_pass:Keeping\n")


def test_calibration_sees_training_rows_only(site, tmp_path, monkeypatch):
    """A pass that asks for rows gets rows of the train part, and as many as the recipe says."""
    import numpy as np

    from lightship.data.split import PARTS
    from lightship.pipeline.recipe import load_recipe
    from lightship.pipeline.stages.prepare import Prepared

    plugins = tmp_path / "plugins"
    plugins.mkdir()
    _recorder(plugins)
    monkeypatch.syspath_prepend(plugins)
    monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=os.pathsep)  # the process that makes variants
    recipe = site.write("keeping.toml", ('variant = "int8-static"', 'variant = "keeping"\ncalibration_rows = 70'))
    assert load_recipe(recipe).optimize.variant == "keeping"
    seen_by_stage: list[Prepared] = []
    monkeypatch.setattr("lightship.pipeline.ship.run_prepare", _noting(seen_by_stage))

    optimized = optimize(recipe, home=site.home)

    rows = np.load(plugins / "seen.npy")
    images = {part: {image.tobytes() for image in seen_by_stage[0].images(part)} for part in PARTS}
    assert [each.name for each in optimized.proposed] == ["keeping"]
    assert len(rows) == 70
    assert all(row.tobytes() in images["train"] for row in rows)
    assert not any(row.tobytes() in images[part] for row in rows for part in PARTS if part != "train")


def _noting(into: list[object]) -> Callable[..., object]:
    """Return ``prepare`` that also keeps what it returned."""
    from lightship.pipeline.stages.prepare import prepare

    def noted(bench: object) -> object:
        into.append(prepare(bench))
        return into[-1]

    return noted


def test_unknown_variant_names_the_known_ones(site, lightship):
    """A variant that no pass makes is refused before anything runs, with the names of those that there are."""
    recipe = site.write("typo.toml", ("int8-static", "int8-statik"))

    ran = lightship("optimize", recipe, home=site.home)

    assert ran.code == 2
    assert "must be one of auto, reference, " in ran.err
    assert "int8-dynamic, " in ran.err
    assert "(did you mean 'int8-static'?)" in ran.err
    assert "Got 'int8-statik'." in ran.err


def test_python_and_command_line_refuse_alike(tmp_path, lightship):
    """A recipe that is not there is the same error from both doors."""
    from lightship.errors import InvalidRecipe

    with pytest.raises(InvalidRecipe, match=r"There is no recipe .*nothing\.toml"):
        ship(tmp_path / "nothing.toml", home=tmp_path / "home")
    ran = lightship("ship", tmp_path / "nothing.toml", home=tmp_path / "home")

    assert ran.code == 2
    assert ran.err.startswith("Error: There is no recipe")
