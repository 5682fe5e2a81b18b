"""What docs/engines.md shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs/engines.md"


def test_the_program_on_the_page_prints_what_the_page_says():
    """One graph in both engines."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (output,) = re.findall(r"```\n(onnxruntime.*?)```", PAGE.read_text(), flags=re.DOTALL)

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert said.stdout == output
