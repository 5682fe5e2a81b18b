"""The report and the card of real releases: shipped, imported, optimized; and of a search that found nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.imports.conftest import linear
from tests.pipeline import optimized_models as models

from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.pipeline.imported import import_model
from lightship.pipeline.optimized import optimize_model
from lightship.pipeline.release_report import release_facts
from lightship.registry.statements import read_statements
from lightship.types import Verdict
from lightship.validate.report.card import render_card
from lightship.validate.report.page import render_page


def measured(home: Home, reference: str, check: str) -> dict:
    """Return what the signed evidence of a check measured."""
    found = read_statements(home, reference).of(check)
    assert found is not None
    return dict(found.evidence.measured)


def test_a_shipped_release_has_the_same_report_from_its_evidence_alone(shipped):
    """Read back, the figures are those of the run's report; only curves and pictures are missing."""
    home = Home(shipped.home)
    facts = release_facts(home, "shapes:1").to_json()
    run = json.loads((shipped.run / "report.json").read_bytes())

    for part in ("gate_accuracy", "per_class", "confusion", "calibration", "slices", "fidelity", "interface", "front"):
        assert facts[part] == run[part], part
    assert [v["quality"] for v in facts["variants"]] == [v["quality"] for v in run["variants"]]
    assert facts["data"] == run["data"]
    assert facts["status"] == "passed"
    assert run["curves"]
    assert facts["curves"] is None
    accuracy = measured(home, "shapes:1", "accuracy")["accuracy"]
    assert facts["gate_accuracy"] == accuracy


def test_the_card_that_is_shown_is_the_one_that_was_signed(shipped, lightship):
    """Beside the report, on demand and in the release: the same bytes, with figures, gaps and how to check them."""
    home = Home(shipped.home)
    beside = (shipped.run / "card.md").read_text(encoding="utf-8")
    shown = lightship("show", "shapes:1", "--card", home=shipped.home)

    assert shown.code == 0, shown.err
    assert shown.out == beside
    assert read_statements(home, "shapes:1").record.card == "sha256:" + sha256_hex(beside.encode())
    accuracy = measured(home, "shapes:1", "accuracy")["accuracy"]
    row = next(line for line in beside.splitlines() if line.startswith("| accuracy on the gate rows |"))
    assert f"{accuracy['estimate'] * 100:.1f}" in row
    assert f"{accuracy['n']:,}" in row
    for told in ("## Limits", "of the model: unknown", "二", "source: folder:images", "lightship verify shapes:1"):
        assert told in beside


def test_a_card_that_was_changed_is_refused(site, lightship):
    """Who may write the store cannot make a model look better than its evidence."""
    card = read_statements(Home(site.home), "shapes:1").record.card
    blob = next(site.home.rglob(card.removeprefix("sha256:")))
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"## Limits", b"## Praise"))

    for command in (("show", "shapes:1", "--card"), ("verify", "shapes:1")):
        assert lightship(*command, home=site.home).code == 6


def test_the_report_of_any_release_is_written_on_demand(shipped, lightship, tmp_path):
    """``show --html``; a name that is not there is exit code 3, and nothing is written."""
    page = tmp_path / "page.html"

    assert lightship("show", "shapes@production", "--html", page, home=shipped.home).code == 0
    assert "<span>Released</span>" in page.read_text(encoding="utf-8")
    other = tmp_path / "other.html"
    assert lightship("show", "shapes:7", "--html", other, home=shipped.home).code == 3
    assert not other.exists()


def test_an_imported_model_is_called_unproven(tmp_path):
    """No rows, no accuracy: the first word says so, and the gaps are named with the reasons of the evidence."""
    (tmp_path / "m.onnx").write_bytes(linear())
    home = Home(tmp_path / "home")
    import_model(tmp_path / "m.onnx", name="m", home=home)

    facts = release_facts(home, "m:1")
    html, card = render_page(facts), render_card(facts)

    assert "<span>Released, unproven</span>" in html
    for said in (html, card.replace("\\", "")):
        assert "how often the answers are right was not measured" in said
    assert facts.data is None
    assert [(v.name, v.chosen, v.size_bytes > 0) for v in facts.variants] == [("reference", True, True)]
    assert ("proven batch", "1 to 32") in facts.interface


@pytest.fixture
def digits(tmp_path) -> Home:
    """A home with an imported perceptron of digits."""
    home = Home(tmp_path / "home")
    (tmp_path / "digits.onnx").write_bytes(models.digits_graph())
    import_model(tmp_path / "digits.onnx", name="digits", home=home, upto={"batch": 16})
    return home


def propose(monkeypatch, graphs) -> None:
    """Let the search propose these graphs; rows, judging and release are real."""
    monkeypatch.setattr("lightship.pipeline.optimize_search.search", models.found(models.digits_graph(), graphs))


def test_an_optimized_model_has_a_report_too(digits, tmp_path, monkeypatch):
    """The page, its facts and the card stand beside the result; accuracy is that of the gate rows."""
    propose(monkeypatch, {"int8-static": models.good()})

    done = optimize_model("digits:1", data=models.rows_file(tmp_path / "rows.npz"), min_accuracy=0.85, home=digits)

    page = done.report.with_suffix(".html")
    html = page.read_text(encoding="utf-8")
    facts = json.loads(page.with_name(f"{page.stem}-facts.json").read_bytes())
    assert "<span>Released</span>" in html
    assert (facts["name"], facts["version"]) == ("digits", 2)
    assert facts["gate_accuracy"] == measured(digits, "digits:2", "accuracy")["accuracy"]
    assert {v["name"]: v["chosen"] for v in facts["variants"]} == {"reference": False, "int8-static": True}
    reason = next(outcome.reason for outcome in done.outcomes if outcome.name == "int8-static")
    assert next(v["reason"] for v in facts["variants"] if v["chosen"]) == reason
    assert ["optimized from", "digits:1"] in facts["lineage"]
    assert page.with_name(f"{page.stem}-card.md").read_text(encoding="utf-8").startswith("# Model card: digits:2")


def test_a_search_that_found_nothing_says_why(digits, tmp_path, monkeypatch):
    """The reference stays: the page names each loser with the gate's reason, and no card is written."""
    propose(monkeypatch, {"wrecked": models.WRECKED["constant"]()})

    done = optimize_model("digits:1", data=models.rows_file(tmp_path / "rows.npz"), home=digits)

    assert done.version is None
    page = done.report.with_suffix(".html")
    html = page.read_text(encoding="utf-8")
    assert "<span>The reference stays</span>" in html
    outcome = next(each for each in done.outcomes if each.name == "wrecked")
    assert outcome.verdict is not Verdict.PASSED
    facts = json.loads(page.with_name(f"{page.stem}-facts.json").read_bytes())
    assert outcome.reason in [v["reason"] for v in facts["variants"]]
    assert not page.with_name(f"{page.stem}-card.md").exists()
    assert not re.search(r"\bNone\b", html.split("</style>")[1])


def test_pages_of_two_versions_open_in_a_moment(shipped):
    """A page is one file of a few hundred kilobytes at most, pictures included."""
    assert (shipped.run / "report.html").stat().st_size < 400_000
    assert isinstance(shipped.run, Path)
