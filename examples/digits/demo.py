"""The main job on real digits: ship, serve, ask the server about an image that it has never seen. Ends by itself.

``scripts/demo`` runs it. Everything used here is public: the command line and the client.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lightship.apply.client import Client
from lightship.data.home import Home

HERE = Path(__file__).parent
LIGHTSHIP = Path(sys.executable).with_name("lightship")
STOP_S = 40  # the server drains for at most 30 s


def main() -> int:
    """Ship, serve, ask; return the exit code."""
    shipping = subprocess.run([LIGHTSHIP, "ship", HERE / "recipe.toml"], check=False)
    if shipping.returncode:
        return shipping.returncode
    home = Home.from_environment()
    photo = sorted((home.runs / "digits" / "held-out").iterdir())[7]

    with (home.logs / "demo-server.log").open("w") as log:
        server = subprocess.Popen(
            [LIGHTSHIP, "serve", "digits", "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        ready = json.loads(server.stdout.readline() if server.stdout else "")
        key = (home.keys / "default.key").read_text().strip()
        with Client(ready["url"], key=key) as client:
            answer = client.predict("digits", photo)
    finally:
        server.terminate()
        server.wait(timeout=STOP_S)

    print(f"\nServed {answer.model}:{answer.version} at {ready['url']}")
    print(f"  POST /predict/digits  {photo.name}  ->  label {answer.label}, probability {answer.probability:.4f}")
    print_next(home, photo)
    return 0


def print_next(home: Home, photo: Path) -> None:
    """Say how to go on."""
    prefix = f"LIGHTSHIP_HOME={home.root}"
    print("\nNext")
    for what, command in (
        ("open the report", home.runs / "digits" / "report.html"),
        ("serve it", f"{prefix} {LIGHTSHIP} serve digits --port 8080"),
        ("ask in process", f"{prefix} {LIGHTSHIP} predict digits {photo}"),
        ("check every byte", f"{prefix} {LIGHTSHIP} verify digits"),
        ("your own images", "a folder per class and a recipe of ten lines: see README.md"),
    ):
        print(f"  {what:<18} {command}")


if __name__ == "__main__":
    sys.exit(main())
