"""What makes a stage run again, and what does not."""

from __future__ import annotations

import json
import shutil

import pytest

from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.errors import GateRefused
from lightship.pipeline.bench import Bench
from lightship.pipeline.cache import StageCache
from lightship.pipeline.recipe import load_recipe
from lightship.pipeline.ship import optimize, ship, validate
from lightship.pipeline.stages.prepare import prepare
from lightship.types import Silent


@pytest.fixture
def cache(tmp_path) -> StageCache:
    """Return a cache in an empty folder."""
    return StageCache(tmp_path / "run")


def write(text: str):
    """Return work that writes one file."""
    return lambda folder, _: (folder / "result.txt").write_text(text)


def never(folder, scratch):
    """Fail: this work should have been skipped."""
    pytest.fail("The stage ran again.")


def test_same_inputs_are_skipped(cache):
    """Work is done once for the same inputs, and once more for others."""
    first = cache.run("train", {"rows": "a"}, write("one"))

    again = cache.run("train", {"rows": "a"}, never)
    other = cache.run("train", {"rows": "b"}, write("two"))

    assert (first.skipped, again.skipped, other.skipped) == (False, True, False)
    assert (again.path / "result.txt").read_text() == "one"
    assert (other.path / "result.txt").read_text() == "two"


def test_only_the_results_used_last_are_kept(cache):
    """A home does not grow with every change of a recipe; what was used again lately stays."""
    paths = [cache.run("train", {"rows": number}, write(str(number))).path for number in range(8)]
    cache.run("train", {"rows": 0}, never)

    cache.run("train", {"rows": 8}, write("8"))

    assert [path.exists() for path in paths[:3]] == [True, False, True]


@pytest.mark.parametrize("damage", ["change", "remove", "mark", "mark-list", "mark-null", "no-mark", "file"])
def test_damaged_result_is_made_again(cache, damage):
    """A result that is not as it was written is not used, whatever happened to it."""
    folder = cache.run("train", {}, write("one")).path
    if damage == "change":
        (folder / "result.txt").write_text("uno")
    elif damage == "remove":
        (folder / "result.txt").unlink()
    elif damage == "no-mark":
        (folder / "stage.json").unlink()
    elif damage == "file":
        shutil.rmtree(folder)
        folder.write_text("not a folder")
    else:
        (folder / "stage.json").write_text({"mark": '{"key": ', "mark-list": "[]", "mark-null": "null"}[damage])

    found = cache.run("train", {}, write("two"))

    assert not found.skipped
    assert (found.path / "result.txt").read_text() == "two"


def test_failed_work_leaves_its_scratch_and_nothing_else(cache, tmp_path):
    """What was begun is thrown away; what the work wants to find again is kept until it is finished."""

    def fail(folder, scratch):
        (folder / "half").write_text("h")
        (scratch / "checkpoint").write_text("c")
        raise RuntimeError("disk gone")

    def resume(folder, scratch):
        (folder / "result.txt").write_text((scratch / "checkpoint").read_text())

    with pytest.raises(RuntimeError, match="disk gone"):
        cache.run("train", {}, fail)
    (left,) = (tmp_path / "run").iterdir()
    found = cache.run("train", {}, resume)

    assert left.name.endswith(".scratch")
    assert (found.path / "result.txt").read_text() == "c"
    assert list((tmp_path / "run").iterdir()) == [found.path]


def test_what_the_result_relies_on_is_asked(cache):
    """A finished result whose support is gone is made again."""
    cache.run("release", {}, write("one"))

    found = cache.run("release", {}, write("two"), still_good=lambda _: False)

    assert not found.skipped


def test_new_margin_reruns_validate_but_not_train(site):
    """A change of the gate judges again; it neither trains nor measures again, and it is no new look."""
    before = ship(site.recipe, home=site.home)
    recipe = site.write("stricter.toml", ("margin = 0.1", "margin = 0.09"))

    after = ship(recipe, home=site.home)

    assert [stage.stage for stage in after.stages if not stage.skipped] == ["validate", "release"]
    assert after.released.version == 2
    assert after.released.bundle != before.released.bundle
    looks = next(row for row in after.released.evidence if row.check == "data").summary
    assert "look 1 at this gate set" in looks


def test_damaged_stage_runs_again_and_gives_the_same_bundle(site, shipped):
    """One changed byte in the measured variants: they are made again, and it is the same release."""
    graph = site.stage("optimize") / "int8-static.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")

    result = ship(site.recipe, home=site.home)

    assert "optimize" in [stage.stage for stage in result.stages if not stage.skipped]
    assert result.released.bundle == shipped.answer["bundle"]
    assert result.released.version == 1


@pytest.mark.parametrize("damage", ["remove", "change"])
def test_damaged_store_is_mended_by_the_next_ship(unreleased, shipped, damage):
    """A blob of a release that is gone or changed is put back; the version stays."""
    ship(unreleased.recipe, home=unreleased.home)
    store = BlobStore(Home(unreleased.home).store)
    manifest = json.loads(store.get(shipped.answer["bundle"]))
    graph = next(file["sha256"] for file in manifest["files"] if file["path"].endswith(".onnx"))
    blob = store.root / "blobs" / "sha256" / graph
    blob.unlink() if damage == "remove" else blob.write_bytes(b"x" + blob.read_bytes()[1:])

    result = ship(unreleased.recipe, home=unreleased.home)

    assert store.get(f"sha256:{graph}")
    assert [stage.stage for stage in result.stages if not stage.skipped] == ["release"]
    assert (result.released.version, result.released.is_new) == (1, False)


def test_refusal_is_remembered(site):
    """A model that was refused is refused again from memory: the gate rows are not looked at twice."""
    recipe = site.write("strict.toml", ("margin = 0.1", "margin = 0.1\nmin_accuracy = 0.9999"))
    with pytest.raises(GateRefused, match=r"shapes .* is not released .*\n- accuracy: "):
        validate(recipe, home=site.home)
    decided = {path.parent.name: path.stat().st_mtime_ns for path in site.run.glob("validate-*/stage.json")}

    with pytest.raises(GateRefused, match="is not released"):
        ship(recipe, home=site.home)

    assert {path.parent.name: path.stat().st_mtime_ns for path in site.run.glob("validate-*/stage.json")} == decided
    looks = [json.loads((path / "validated.json").read_bytes())["gate_looks"] for path in site.run.glob("validate-*")]
    assert looks == [1, 1]


def test_report_of_the_release_outlives_a_refusal(site):
    """A refusal is written beside the report of what is live, never over it."""
    before = (site.run / "report.html").read_bytes()
    recipe = site.write("strict.toml", ("margin = 0.1", "margin = 0.1\nmin_accuracy = 0.9999"))

    with pytest.raises(GateRefused, match=r"decision\.html"):
        ship(recipe, home=site.home)

    assert (site.run / "report.html").read_bytes() == before
    assert json.loads((site.run / "decision.json").read_bytes())["released"] is False


def test_touched_row_reruns_prepare(shipped, site):
    """One changed pixel, one renamed file or one new row: the rows are split again. The same rows: they are not."""
    (site.folder / "images").unlink()
    shutil.copytree(shipped.folder / "images", site.folder / "images")
    image = site.folder / "images" / "二" / "007.png"

    def skipped() -> bool:
        bench = Bench(load_recipe(site.recipe), site.folder, Home(site.home), StageCache(site.run), progress=Silent())
        return prepare(bench).finished.skipped

    untouched = skipped()
    image.write_bytes((image.parent / "008.png").read_bytes())
    changed = skipped()
    image.rename(image.with_name("renamed.png"))
    renamed = skipped()
    (site.folder / "images" / "二" / "900.png").write_bytes(b"not an image")
    added = skipped()

    assert (untouched, changed, renamed, added) == (True, False, False, False)


def test_variant_is_measured_under_its_own_name(site):
    """The same bytes under two file names are two variants in what people read."""
    graph = (site.stage("train") / "reference.onnx").read_bytes()
    names = []
    for name in ("first", "second"):
        (site.folder / f"{name}.onnx").write_bytes(graph)
        names.append(validate(site.recipe, variant=site.folder / f"{name}.onnx", home=site.home).chosen)

    assert names == ["first", "second"]


def test_auto_drops_with_a_reason_and_may_keep_the_reference(site):
    """What is not shown to be faster is dropped, and the reference is an honest result."""
    recipe = site.write(
        "auto.toml",
        ('variant = "int8-static"', 'variant = "auto"\npasses = ["int8-static", "int8-dynamic"]\nminutes = 0.5'),
    )

    optimized = optimize(recipe, home=site.home)

    assert {each.name for each in optimized.candidates} >= {"int8-static", "int8-dynamic"}
    assert all(each.dropped or optimized.speed(each).timing.b_is_faster for each in optimized.candidates)
    assert not optimized.must_pass
