"""What every benchmark prints and writes: a table, JSON, a check against goals, a table in the docs."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

SIZES = ("--minutes", "--records", "--rounds", "--swaps")
BEGIN, END = "<!-- table: {} -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Measurement:
    """One figure. goal : None where there is none."""

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"]
    goal: float | None = None
    samples: tuple[float, ...] = ()

    @property
    def is_missed(self) -> bool:
        """Whether the goal is missed; also by a value that is no number."""
        if self.goal is None:
            return False
        return not (self.value <= self.goal if self.better == "lower" else self.value >= self.goal)


def options(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--quick", action="store_true", help="a smaller input, for a minute's look")
    return parser


def median_of(
    name: str, samples: Sequence[float], unit: str, better: Literal["lower", "higher"] = "lower",
    goal: float | None = None,
) -> Measurement:
    """The median of samples, which are kept."""
    return Measurement(name, statistics.median(samples), unit, better, goal, tuple(samples))


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a median, by order statistics; the extremes where there are few samples."""
    ordered = sorted(samples)
    n = len(ordered)
    half = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    return ordered[low], ordered[high]


def print_table(found: list[Measurement]) -> None:
    """One line a figure."""
    width = max(len(one.name) for one in found)
    for one in found:
        goal = "" if one.goal is None else f"   goal {'<=' if one.better == 'lower' else '>='} {one.goal:g}"
        print(f"{one.name:{width}s}  {one.value:9.3f} {one.unit:3s}{goal}{'   MISSED' if one.is_missed else ''}")


def report(
    found: list[Measurement], command: str, out: Path | None, check: bool, docs: Path | None = None
) -> int:
    """Writes JSON and docs where asked for; the exit code: 1 where a goal is missed and `check` is set."""
    if out is not None:
        out.write_text(json.dumps({
            "command": f"python -m {command} {' '.join(sys.argv[1:])}".strip(), "machine": machine(),
            "versions": {name: version(name) for name in ("narrows", "numpy", "onnx", "onnxruntime")},
            "measurements": [asdict(one) for one in found],
        }, indent=1))
    if docs is not None:
        write_into(docs, found, command)
    missed = [one.name for one in found if one.is_missed]
    if check and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 0


def machine() -> dict[str, str | int]:
    """What the figures were made on, without names of hosts."""
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count() or 0,
            "python": platform.python_version()}


def _sizes(argv: list[str]) -> list[str]:
    """What of a command line says how much was run; the caption tells it."""
    return [
        word for place, word in enumerate(argv)
        if word in SIZES or word == "--quick" or (place and argv[place - 1] in SIZES)
    ]


def write_into(page: Path, found: list[Measurement], command: str) -> None:
    """Replaces the table between the page's markers; its caption says when, of which commit, on what."""
    begin = BEGIN.format(command)
    text = page.read_text(encoding="utf-8")
    if begin not in text:
        raise SystemExit(f"{page} has no line {begin!r}")
    head, rest = text.split(begin, 1)
    tail = rest.split(END, 1)[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    command = " ".join([command, *_sizes(sys.argv)])
    caption = (f"`python -m {command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, "
               f"{machine()['machine']}, {machine()['cores']} cores.")
    lines = ["| figure | value | goal |", "|---|---|---|"]
    for one in found:
        goal = "" if one.goal is None else f"{'at most' if one.better == 'lower' else 'at least'} {one.goal:g}"
        missed = " (missed)" if one.is_missed else ""
        value = str(one.value) if isinstance(one.value, int) else f"{one.value:.3f}"
        lines.append(f"| {one.name} | {value} {one.unit}{missed} | {goal} |".replace("  ", " "))
    page.write_text(f"{head}{begin}\n{caption}\n\n" + "\n".join(lines) + f"\n{END}{tail}", encoding="utf-8")
