"""Names, aliases and references."""

from __future__ import annotations

import pytest

from lightship.errors import InvalidInput
from lightship.registry.names import Reference, check_alias, check_name, check_version, fold


@pytest.mark.parametrize("name", ["a", "digits", "7", "a.b-c_d", "a" * 64, "raw", "draw", "x.rawer"])
def test_plain_names_are_taken(name):
    """Lowercase letters, digits and inner separators, up to 64."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "Digits", "-a", "a-", ".a", "a.", "a b", "a/b", "../a", "a\n", "a\x00", "ä", "a\u0308", "аdigits",
     "a" * 65, "a" * 10_000, "a@b", "a:1", "a%2f", "a\\b", "\u0661"],
)  # fmt: skip
def test_hostile_names_are_refused(name):
    """Paths, controls, capitals, look-alikes of other scripts and overlong names are refused in a short message."""
    with pytest.raises(InvalidInput, match="1 to 64 of a-z") as caught:
        check_name(name)

    assert len(str(caught.value)) < 300
    assert str(caught.value).isascii()


def test_the_ending_of_the_raw_door_is_reserved():
    """``digits.raw`` is what a server calls the raw door of ``digits``."""
    with pytest.raises(InvalidInput, match=r"must not end in '\.raw'"):
        check_name("digits.raw")


@pytest.mark.parametrize("alias", ["production", "a", "eu-west-1", "a" * 32])
def test_plain_aliases_are_taken(alias):
    """A letter first, then letters, digits and dashes."""
    assert check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["", "1", "-a", "A", "a_b", "a.b", "a" * 33, "a\n", "á"])
def test_other_aliases_are_refused(alias):
    """All else is refused."""
    with pytest.raises(InvalidInput, match="An alias must start with a letter"):
        check_alias(alias)


@pytest.mark.parametrize("version", [0, -1, 1_000_000_000, True, 1.5, "1x"])
def test_numbers_that_are_no_version_are_refused(version):
    """Versions count from 1."""
    with pytest.raises(InvalidInput, match="integer from 1"):
        check_version(version)


def test_separators_fold_to_one():
    """Names that read the same fold the same; a missing separator is another name."""
    assert fold("my-model") == fold("my_model") == fold("my.model") == fold("my-_.model")
    assert fold("mymodel") != fold("my-model")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("digits", Reference("digits", "production", None)),
        ("digits@staging", Reference("digits", "staging", None)),
        ("digits:3", Reference("digits", None, 3)),
    ],
)
def test_a_reference_has_three_forms(text, reference):
    """A bare name means its production."""
    assert Reference.parse(text) == reference
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["", "@", ":", "digits@", "digits:", "digits:0", "digits:01", "digits:-1", "digits:x", "digits@a@b",
             "digits:1:2", "digits@a:1", "digits:1@a", " digits", "digits:\u0661"]
)  # fmt: skip
def test_other_references_are_refused(text):
    """No form beyond the three is guessed at."""
    with pytest.raises(InvalidInput, match="Got"):
        Reference.parse(text)
