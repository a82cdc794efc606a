"""Who may import whom: a short list of edges. A file that needs another edge is in the wrong room, or the list is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Room -> rooms that it may import beside itself. `errors` is open to all. `pipeline.` is left out of the names.
EDGES: dict[str, set[str]] = {
    "errors": set(),
    "core": set(),
    "metrics": set(),
    "local": set(),
    "codec": {"core"},
    "formats": {"core"},
    "registry": {"core"},
    "topics": {"core"},
    "engine": {"core"},
    "config": {"core", "formats"},
    "scoring": {"core", "codec", "registry", "topics"},
    "retraining": {"core", "codec", "registry", "topics"},
    "sinks": {"core", "codec", "registry", "topics"},
    "dashboard": {"core", "codec", "formats", "sinks"},
    "agent": {"core", "engine", "scoring"},
    "line": {"core", "engine", "formats", "scoring", "codec", "sinks"},
    "app": {"*"},
    "cli": {"*"},
    # config: the trainer is told by the workers' own file. cli: its commands share the options of files.
    "training": {"core", "codec", "formats", "topics", "registry", "scoring", "retraining", "config", "cli"},
}

# Packages that a room never imports, by name of the room; "pipeline" stands for every file under pipeline/.
NEVER: dict[str, set[str]] = {
    "pipeline": {"training", "torch", "sklearn", "matplotlib", "optuna", "tests", "bench"},
    "core": {"faust", "aiokafka", "kafka", "redis", "onnxruntime", "asyncio", "socket", "time"},
    "codec": {"faust", "aiokafka", "kafka", "redis", "onnxruntime", "onnx"},
    "formats": {"faust", "aiokafka", "kafka", "redis", "onnxruntime"},
    "training": {"faust", "tests", "bench"},
}

FAUST = {"engine", "app"}  # the only rooms that know the streaming library


def files() -> list[Path]:
    """Every source file of the two packages."""
    return sorted(file for package in ("pipeline", "training") for file in (ROOT / package).rglob("*.py"))


def room_of(module: str) -> str:
    """pipeline.core.rows -> core, pipeline.app -> app, training.loop -> training."""
    parts = module.split(".")
    if parts[0] == "pipeline":
        return parts[1] if len(parts) > 1 else "pipeline"
    return parts[0]


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import, wherever in the file it stands; those for type checkers alone too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports absolute"
            if node.module in ("pipeline", "training"):
                for name in node.names:
                    yield node.lineno, f"{node.module}.{name.name}"
            else:
                yield node.lineno, node.module or ""


def wrong_imports(file: Path) -> list[str]:
    """What breaks the lists above, one line each."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    room = room_of(module)
    if room not in EDGES and room not in ("pipeline", "__init__"):
        return [f"{module}: room {room} is not in EDGES of {Path(__file__).name}"]
    allowed = EDGES.get(room, set())
    never = NEVER.get(room, set()) | (NEVER["pipeline"] if module.startswith("pipeline") else set())
    wrong = []
    for line, target in imports_of(file):
        package = target.split(".")[0]
        where = f"{file.relative_to(ROOT)}:{line}"
        if package in never:
            wrong.append(f"{where}: {room} never imports {package}")
        elif package in ("faust", "mode") and room not in FAUST:
            wrong.append(f"{where}: only {', '.join(sorted(FAUST))} import {package}")
        elif package == "pipeline":
            other = room_of(target)
            if other == "app" and room not in ("cli", "app"):
                wrong.append(f"{where}: only cli imports app")
            elif other not in (room, "errors", "pipeline") and other not in allowed and "*" not in allowed:
                wrong.append(f"{where}: {room} may not import {other}")
    return wrong


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_allowed_edges(file):
    assert wrong_imports(file) == []


def test_a_forbidden_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "pipeline" / "core" / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text("def f():\n    import torch\n    from pipeline.sinks import blocks\n    from pipeline import app\n")
    assert [line.split(": ")[1] for line in wrong_imports(file)] == [
        "core never imports torch", "core may not import sinks", "only cli imports app"
    ]
