"""The main job on real digits: ship, serve, ask the server about an image it has never seen. Ends by itself.

Run by ``scripts/demo``. Everything here is public: the command line, and the client.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lightship.apply.client import Client
from lightship.data.home import Home
from lightship.pipeline.ship import ship

HERE = Path(__file__).parent
LIGHTSHIP = Path(sys.executable).with_name("lightship")


def main() -> int:
    """Ship, serve, ask."""
    shipping = subprocess.run([LIGHTSHIP, "ship", HERE / "recipe.toml"], check=False)
    if shipping.returncode:
        return shipping.returncode

    photo, truth = held_out_image(Home.from_environment().root / "held-out.png")
    server = subprocess.Popen(
        [LIGHTSHIP, "serve", "digits", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        ready = json.loads(server.stdout.readline())  # type: ignore[union-attr]  # stdout is a pipe
        key = Path(ready["key_file"]).read_text().strip()
        with Client(ready["url"], key=key) as client:
            answer = client.predict("digits", photo)
        print(f"\nServed {answer.model}:{answer.version} at {ready['url']}")
        print(f"  POST /predict/digits  {photo.name}  ->  {answer.label}  ({answer.probability:.1%}; it is a {truth})")
    finally:
        server.terminate()
        server.wait(timeout=40)

    print(f"""
Next
  open the report            {report_path()}
  serve it                   LIGHTSHIP_HOME={os.environ["LIGHTSHIP_HOME"]} .venv/bin/lightship serve digits --port 8080
  ask in process             .venv/bin/lightship predict digits {photo}
  check every byte           .venv/bin/lightship verify digits
  your own images            a folder per class, a recipe of ten lines: README.md""")
    return 0
