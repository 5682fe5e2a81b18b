"""A recipe with a mistake costs a second, not a training."""

from __future__ import annotations

import pytest

from lightship.errors import InvalidRecipe
from lightship.pipeline.recipe import load_recipe


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('[optimize]\nvariant = "int8-statik"', "did you mean 'int8-static'"),
        ('[optimize]\nvariant = ""', "must be one of auto, reference, "),
        ('[optimize]\npasses = ["int9"]', "must be one of "),
        ("[optimize]\npasses = []", 'set `variant = "reference"`'),
        ('[optimize]\npasses = "int8-static"', 'must be a list, e.g. ["int8-static"]'),
        ("[train]\ndropout = 0.97", "less than or equal to 0.95"),
        ("[train]\nlabel_smoothing = 0.97", "less than or equal to 0.95"),
        ("[train]\nscale = 0.95", "less than or equal to 0.9"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_when_the_recipe_is_read(section, words, tmp_path):
    """Names of passes and limits of the training are known before any row is read."""
    path = tmp_path / "recipe.toml"
    path.write_text(f'name = "m"\n[data]\nsource = "folder:images"\n{section}\n')

    with pytest.raises(InvalidRecipe) as caught:
        load_recipe(path)

    assert words in str(caught.value)
