"""An environment of its own for a rival whose dependencies can't stand beside ours."""

import subprocess
import sys
from pathlib import Path

QUIX = "quixstreams==3.28.1"   # wants an older confluent-kafka than ours
BESIDE = ("numpy", "msgspec", "onnxruntime")
FOLDER = Path(__file__).parent.parent.parent / ".narrows" / "bench-quix"


def quix_python() -> str | None:
    """The interpreter that has Quix Streams, installed the first time; None, the reason told, where it can't be."""
    python = FOLDER / "bin" / "python"
    try:
        imports = [python, "-c", "import quixstreams, onnxruntime, msgspec"]
        if subprocess.run(imports, capture_output=True, check=False).returncode == 0:
            return str(python)
    except OSError:
        pass
    uv = [sys.executable, "-m", "uv"]
    for command in (
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)],
        [*uv, "pip", "install", "--quiet", "--python", str(python), QUIX, *BESIDE],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"Quix Streams is left out, it can't be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return None
    return str(python)
