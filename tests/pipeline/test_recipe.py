"""What a recipe may say, and how it is told that it may not."""

from __future__ import annotations

import pytest

from lightship.errors import InvalidRecipe
from lightship.pipeline.recipe import load_recipe

GOOD = 'name = "digits"\n[data]\nsource = "folder:images"\n'


@pytest.fixture
def recipe(tmp_path):
    """Return a function that reads a recipe from text."""

    def load(text: str | bytes):
        path = tmp_path / "recipe.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path)

    return load


def test_three_lines_are_a_recipe(recipe):
    """All that is not said has a default."""
    found = recipe(GOOD)

    assert found.name == "digits"
    assert found.optimize.variant == "auto"
    assert found.data.split.gate == 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 1\n" + GOOD, r"nmae: there is no such key\. Did you mean 'name'\?"),
        (GOOD + "[train]\nepoch = 3\n", r"train\.epoch: there is no such key\. Did you mean 'epochs'\?"),
        (GOOD + "[data.split]\ngates = 0.2\n", r"data\.split\.gates: there is no such key\. Did you mean 'gate'\?"),
        (GOOD + "[gate]\nzzzzzz = 1\n", r"gate\.zzzzzz: there is no such key\. Known here: min_accuracy, margin"),
        (GOOD + "[trian]\nepochs = 3\n", r"trian: there is no such key\. Did you mean 'train'\?"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(recipe, text, message):
    """A typo never changes a model silently, at any depth."""
    with pytest.raises(InvalidRecipe, match=message):
        recipe(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + '[train]\nepochs = "3"\n', r"train\.epochs: .*integer.* Got '3'"),
        (GOOD + "[train]\nepochs = 3.5\n", r"train\.epochs: .*integer.* Got 3\.5"),
        (GOOD + "[train]\nepochs = true\n", r"train\.epochs: .*integer.* Got True"),
        (GOOD + "[train]\nepochs = 0\n", r"train\.epochs: .*greater than or equal to 1.* Got 0"),
        (GOOD + "[train]\nlearning_rate = nan\n", r"train\.learning_rate: .*finite.* Got nan"),
        (GOOD + "[gate]\nmin_accuracy = inf\n", r"gate\.min_accuracy: .* Got inf"),
        (GOOD + "[gate]\nmin_accuracy = 95\n", r"gate\.min_accuracy: .*less than 1.* Got 95"),
        (GOOD + "[gate]\nmargin = 0\n", r"gate\.margin: .*greater than 0.* Got 0"),
        (GOOD + '[train]\noptimizer = "adam"\n', r"train\.optimizer: .*'sgd', 'momentum' or 'adamw'.* Got 'adam'"),
        (GOOD + "[image]\nchannels = 4\n", r"image\.channels: .*1 or 3.* Got 4"),
        (GOOD + "[train]\nseed = 18446744073709551616\n", r"train\.seed: .*less than or equal to 9007199254740991"),
        (GOOD + "[optimize]\npasses = []\n", r"optimize\.passes: must name a pass.* Got \[\]"),
        (GOOD + '[optimize]\npasses = ["a", "a"]\n', r"optimize\.passes: each pass may stand there once"),
        (GOOD + '[optimize]\npasses = "int8-static"\n', r"optimize\.passes: must be a list.* Got 'int8-static'"),
        ('train = 3\nname = "digits"\n[data]\nsource = "x"\n', r"train: must be a table, \[train\]\. Got 3"),
        ('name = "digits"\n', r"data: is missing"),
        ('name = "digits"\n[data]\nseed = 1\n', r"data\.source: is missing"),
        ('name = 7\n[data]\nsource = "x"\n', r"name: .*string.* Got 7"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(recipe, text, message):
    """The message says the place, what may stand there, and what came."""
    with pytest.raises(InvalidRecipe, match=message):
        recipe(text)


def test_fractions_must_sum_to_one(recipe):
    """Rows are never dropped, nor counted twice, by fractions that do not fit."""
    text = GOOD + "[data.split]\ntrain = 0.7\nvalidation = 0.1\nselection = 0.1\ngate = 0.2\n"

    with pytest.raises(InvalidRecipe, match=r"data\.split: the four fractions must sum to 1, got 1\.1"):
        recipe(text)


@pytest.mark.parametrize(
    "name", ["", "Digits", "../up", "a/b", "-a", "a.", "a" * 65, "digits.raw", "dig its", "digits\\n", "数"]
)
def test_bad_name_is_refused(recipe, name):
    """A name is a folder, a route and a key: few letters, no way out of its folder."""
    with pytest.raises(InvalidRecipe, match=r"name: A model.s name must"):
        recipe(f'name = "{name}"\n[data]\nsource = "x"\n')


def test_every_fault_is_listed_at_once(recipe):
    """Who has three faults reads of three."""
    with pytest.raises(InvalidRecipe) as refused:
        recipe('name = "A"\n[data]\nsource = "x"\n[train]\nepochs = 0\nlr = 1\n')

    lines = str(refused.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["name", "train.epochs", "train.lr"]


def test_text_that_is_not_toml_is_refused_with_the_line(recipe):
    """The place of the fault is in the message."""
    with pytest.raises(InvalidRecipe, match=r"is not valid TOML: .*line 1"):
        recipe("name digits\n")


def test_bytes_that_are_not_text_are_refused(recipe):
    """A picture given as a recipe is one line of error."""
    with pytest.raises(InvalidRecipe, match="is not UTF-8 text"):
        recipe(b"\x89PNG\xff\xfe")


def test_byte_order_mark_is_no_fault(recipe):
    """Some editors begin a file with one."""
    assert recipe("\ufeff" + GOOD).name == "digits"


def test_folder_is_refused_as_a_recipe(tmp_path):
    """A folder in place of the file is said to be unreadable."""
    with pytest.raises(InvalidRecipe, match=r"cannot be read: .*directory"):
        load_recipe(tmp_path)
