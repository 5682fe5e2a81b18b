"""The JSON twin says what the facts say."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

from lightship.validate.report.facts import ReportFacts, render_json


def test_json_twin_reads_back_as_the_facts(release: ReportFacts) -> None:
    """What is parsed from the text is what the facts gave."""
    read = json.loads(render_json(release))

    assert read == release.to_json()
    assert base64.b64decode(read["worst"][0]["png"]) == release.worst[0].png
    assert read["variants"][2]["quality"] == release.variants[2].quality.to_json()  # type: ignore[union-attr]


def test_json_twin_has_every_field_of_every_fact(release: ReportFacts) -> None:
    """A field that is added to the facts cannot be forgotten in the twin."""
    read = release.to_json()

    pairs = [
        (release, read),
        (release.data, read["data"]),
        (release.curves, read["curves"]),
        (release.confusion, read["confusion"]),
        (release.front, read["front"]),
        (release.front.floor, read["front"]["floor"]),
        (release.calibration, read["calibration"]),
        (release.calibration.bins[0], read["calibration"]["bins"][0]),
        (release.near_duplicates, read["near_duplicates"]),
        (release.near_duplicates.examples[0], read["near_duplicates"]["examples"][0]),
        *((one, shown[0]) for one, shown in _firsts(release, read)),
    ]
    for facts, shown in pairs:
        assert set(shown) == set(type(facts).__dataclass_fields__)


FIRSTS = ("variants", "per_class", "worst", "evidence", "slices", "slice_harm", "values", "divergence")


def _firsts(release: ReportFacts, read: dict) -> list:
    return [(getattr(release, name)[0], read[name]) for name in FIRSTS]


def test_json_twin_has_null_where_a_number_is_not_finite(no_numbers: ReportFacts) -> None:
    """Strict parsers read the twin of a run that exploded."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    read = json.loads(render_json(no_numbers), parse_constant=refuse)

    assert read["curves"]["train_loss"] == [None] * 20
    assert read["variants"][0]["latency_p50_ms"] is None
    assert read["evidence"][0]["measured"]["difference"]["low"] is None


def test_json_twin_can_be_written_as_utf8_whatever_the_names(release: ReportFacts, say) -> None:
    """A file name that is not UTF-8 comes as lone surrogates, which no encoder takes."""
    text = render_json(say(release, "a\udcffb 猫"))

    assert "a\ufffdb 猫" in json.loads(text.encode())["name"]


def test_facts_load_no_template_engine() -> None:
    """A stage that fills in facts pays for no drawing."""
    heavy = {"jinja2", "numpy", "markupsafe"}
    code = f"import sys, lightship.validate.report.facts; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
