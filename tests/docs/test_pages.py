"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightship.cli.reference import commands_page
from lightship.pipeline.recipe import load_recipe
from lightship.pipeline.reference import recipe_page

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize(("page", "made"), [("recipe.md", recipe_page), ("commands.md", commands_page)])
def test_a_page_made_from_the_code_is_up_to_date(page, made):
    """A new option or key appears in the docs, or this fails: run scripts/write-docs."""
    assert (ROOT / "docs" / page).read_text() == made()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    """A page that was moved leaves no dead link."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())

    missing = [link for link in links if not (page.parent / link).exists()]

    assert not missing


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_the_recipe_in_the_readme_is_a_recipe(readme, tmp_path):
    """What a newcomer copies is accepted."""
    (block,) = re.findall(r"```toml\n(.*?)```", readme.read_text(), flags=re.DOTALL)
    path = tmp_path / "recipe.toml"
    path.write_text(block)

    recipe = load_recipe(path)

    assert recipe.name == "leaves"


def test_both_readmes_show_the_same_code():
    """The Chinese page is not left behind: its code blocks, pictures and commands are those of the English one."""
    english, chinese = (page.read_text() for page in READMES)

    def code(text):
        blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
        return [(kind, re.sub(r"#.*", "", body)) for kind, body in blocks]

    assert code(english) == code(chinese)
    assert re.findall(r"\(docs/[^)]+\)", english) == re.findall(r"\(docs/[^)]+\)", chinese)
