"""What the pipeline says of rows that it cannot use as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightship.data.home import Home
from lightship.data.split import PARTS
from lightship.errors import InvalidData
from lightship.pipeline.bench import Bench
from lightship.pipeline.cache import StageCache
from lightship.pipeline.recipe import load_recipe
from lightship.pipeline.ship import ship
from lightship.pipeline.stages.prepare import Prepared, prepare
from lightship.types import Silent


def prepared(folder: Path, recipe: str = "", *, name: str = "rows") -> Prepared:
    """Prepare the folder ``images`` beside a recipe of three lines and ``recipe``."""
    path = folder / "recipe.toml"
    path.write_text(f'name = "{name}"\n[data]\nsource = "folder:images"\n{recipe}')
    home = Home(folder / "home").ensure()
    return prepare(Bench(load_recipe(path), folder, home, StageCache(home.runs / name), Silent()))


def write(folder: Path, label: str, count: int, *, size=(8, 8), color: bool = False, seed: int = 3) -> None:
    """Write random images of a class."""
    random = np.random.default_rng([seed, *label.encode()])
    (folder / "images" / label).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 256, (*size, 3) if color else size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / label / f"{number:03d}.png")


def test_class_missing_from_a_part_is_refused(tmp_path, lightship):
    """Three rows cannot fill four parts: exit code 2, with class and part."""
    write(tmp_path, "many", 80)
    write(tmp_path, "a few", 3)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "rows"\n[data]\nsource = "folder:images"\n')

    ran = lightship("ship", recipe, home=tmp_path / "home")

    assert ran.code == 2
    assert "class 'a few' (3 rows in all) in part '" in ran.err
    assert "Add rows of the class" in ran.err
    assert "Traceback" not in ran.err
    assert [path.name for path in (tmp_path / "home" / "runs" / "rows").iterdir()] == ["lock"]


@pytest.mark.parametrize("labels", [[], ["only"]])
def test_fewer_than_two_classes_are_refused(tmp_path, labels):
    """There is nothing to tell apart."""
    (tmp_path / "images").mkdir()
    for label in labels:
        write(tmp_path, label, 20)

    with pytest.raises(InvalidData, match=r"class|image"):
        prepared(tmp_path)


def test_source_that_is_not_there_is_refused(tmp_path):
    """The message names the folder."""
    with pytest.raises(InvalidData, match="images"):
        prepared(tmp_path)


def test_images_that_cannot_be_decoded_are_refused(tmp_path):
    """A folder of files that only look like images is no data."""
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "images" / label / f"{number}.png").write_bytes(b"no image")

    with pytest.raises(InvalidData, match=r"decoded|bad|usable"):
        prepared(tmp_path)


def test_size_and_channels_are_found(tmp_path):
    """What the recipe leaves out comes from the rows: their size, and color only where there is color."""
    for folder, color in (("gray", False), ("color", True)):
        for label in ("a", "b"):
            write(tmp_path / folder, label, 60, size=(12, 20), color=color)

    gray, color = prepared(tmp_path / "gray").task, prepared(tmp_path / "color").task

    assert (gray.channels, gray.height, gray.width) == (1, 12, 20)
    assert (color.channels, color.height, color.width) == (3, 12, 20)


def test_large_images_are_not_taken_whole_unasked(tmp_path):
    """The silent default stops at 64 pixels; a recipe may ask for more."""
    for label in ("a", "b"):
        write(tmp_path, label, 60, size=(90, 100))

    found = prepared(tmp_path).task
    asked = prepared(tmp_path, "[image]\nheight = 80\nwidth = 80\n").task

    assert (found.height, found.width) == (64, 64)
    assert (asked.height, asked.width) == (80, 80)


def test_normalization_comes_from_training_rows(tmp_path):
    """Mean and deviation are those of the train part, to four decimals."""
    for label in ("a", "b"):
        write(tmp_path, label, 60)

    found = prepared(tmp_path)

    train = found.images("train").astype(np.float64)
    assert abs(train.mean()) < 1e-3
    assert abs(train.std() - 1) < 1e-3


def test_constant_images_do_not_divide_by_zero(tmp_path):
    """A channel that never changes is encoded to finite numbers."""
    for label, shade in (("a", 10), ("b", 10)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(60):
            pixels = np.full((8 + number % 7, 8 + number // 7), shade + (label == "b"), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")

    found = prepared(tmp_path)

    assert np.isfinite(found.images("train")).all()


def test_finished_split_is_read_back_as_it_was(tmp_path):
    """The second time nothing is split again, and all parts are the same."""
    for label in ("a", "b"):
        write(tmp_path, label, 60)
    first = prepared(tmp_path)

    second = prepared(tmp_path)

    assert second.finished.skipped
    assert second.split == first.split
    assert second.task == first.task
    assert all((second.labels(part) == first.labels(part)).all() for part in PARTS)


def test_bad_rows_are_counted_and_named(site, shipped):
    """A broken file among the images is named in the prepared rows and in the report; it never stops a release."""
    (site.folder / "images").unlink()
    shutil.copytree(shipped.folder / "images", site.folder / "images")
    (site.folder / "images" / "二" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")

    ship(site.recipe, home=site.home)

    report = json.loads((site.run / "report.json").read_bytes())
    evidence = next(each for each in report["evidence"] if each["check"] == "data")
    assert report["data"]["bad_rows"] == 1
    assert "1 bad rows" in evidence["summary"]
    assert evidence["measured"]["first_bad"][0]["id"].endswith("二/broken.png")
    assert evidence["measured"]["first_bad"][0]["reason"]
