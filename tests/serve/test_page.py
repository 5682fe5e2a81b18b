"""docs/serving.md: its commands run, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lightship.serve.limits import Clocks, Limits
from lightship.tasks.image_pixels import png_bytes

PAGE = (Path(__file__).parent.parent.parent / "docs" / "serving.md").read_text()


def blocks(kind: str) -> list[str]:
    """Return the code blocks of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("kind", ["sh", "python"])
def test_what_the_page_shows_runs(kind, locked_server, image, tmp_path):
    """Against a real server, as it stands there but for the ports."""
    (tmp_path / "photo.png").write_bytes(png_bytes(image(3)[:, :, None]))
    found = blocks(kind)
    assert found
    for block in found:
        code = block.replace("127.0.0.1:8000", "{}:{}".format(*locked_server.address))
        code = code.replace("127.0.0.1:8001", locked_server.grpc_url)
        command = ["bash", "-ec", code] if kind == "sh" else [sys.executable, "-c", code]
        environment = {**os.environ, "LIGHTSHIP_KEY": locked_server.keys["infer"]}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "label" in done.stdout or "(2, 10)" in done.stdout


@pytest.mark.parametrize("settings", [Limits, Clocks])
def test_the_tables_have_every_limit_with_its_default(settings):
    """A new limit, or a changed one, is in the page too."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([0-9.]+) \|", PAGE, flags=re.MULTILINE))
    for field in fields(settings):
        assert rows.get(field.name) == str(field.default), field.name
