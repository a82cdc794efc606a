"""Writes constraints.txt: one version of every package, for Python 3.11 to 3.13 and both builds of ONNX Runtime.

Run it after changing pyproject.toml: `.venv/bin/python tools/lock_python.py [--upgrade]`. What is pinned already stays,
unless --upgrade is given. onnxruntime and onnxruntime-gpu share a module, so they are resolved apart and stand here
side by side; a constraint installs nothing by itself.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
HEADER = "# Written by tools/lock_python.py from pyproject.toml; every set-up and every image installs with it.\n"
EXTRAS = ("train", "test", "bench", "local")


def resolve(runtime: str, options: list[str]) -> set[str]:
    """Pins of a resolution with one build of ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "pins.txt")
        if CONSTRAINTS.exists():
            out.write_text(CONSTRAINTS.read_text())
        extras = [word for extra in (runtime, *EXTRAS) for word in ("--extra", extra)]
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
             "--no-annotate", "--no-header", *extras, *options, str(ROOT / "pyproject.toml"), "-o", str(out)],
            check=True, stdout=subprocess.DEVNULL,
        )
        return set(out.read_text().split("\n")) - {""}


def main() -> None:
    """Resolves twice and writes the union."""
    options = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    pins = resolve("cpu", options) | resolve("gpu", options)
    CONSTRAINTS.write_text(HEADER + "\n".join(sorted(pins)) + "\n")
    print(f"{CONSTRAINTS.name}: {len(pins)} pins")


if __name__ == "__main__":
    main()
