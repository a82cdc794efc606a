"""What `narrows demo` shows: a live picture on a terminal, lines elsewhere, and the summary."""

import time
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.dashboard.watch import Episode, Snapshot, StreamView, Swap

COLOURS = {"low": "cyan", "medium": "yellow", "high": "dark_orange", "critical": "red"}
LINE_EVERY_S = 5.0
MOST_EPISODES = 8
SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Job:
    """The newest retraining job."""

    state: str
    stage: str
    progress: float | None
    outcome: str
    error: str
    result: dict[str, Any]

    @property
    def words(self) -> str:
        if self.state == "finished":
            return self.outcome or "finished"
        return f"{self.state}{f': {self.stage}' if self.stage else ''}"


@dataclass
class Facts:
    """Everything that the demo measures, up to now."""

    url: str
    speed: float
    set_up_s: float
    devices: int
    rows_a_loop: int
    rows_before: int = 0
    streamed_s: float = 0.0
    rows: int = 0
    bytes_sent: int = 0
    lag: int | None = None
    first_anomaly_s: float | None = None
    swaps: list[Swap] = field(default_factory=list)
    job: Job | None = None
    view: StreamView | None = None
    episodes: dict[str, Episode] = field(default_factory=dict)
    scores: int = 0
    scores_expected: int = 0
    scores_twice: int = 0
    scored_by: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[str, str, bool]] = field(default_factory=list)
    is_interrupted: bool = False

    def take(self, snapshot: Snapshot, seconds: float, rows: int, size: int, job: Job | None) -> None:
        """The newest state."""
        self.streamed_s, self.rows, self.bytes_sent, self.job = seconds, rows, size, job
        if not snapshot.streams:
            return
        self.view = view = snapshot.streams[0]
        self.lag, self.swaps = view.lag, view.swaps[1:]
        for episode in (*reversed(view.recent), *view.open):
            self.episodes[episode.id] = episode
        if self.first_anomaly_s is None and self.episodes:
            self.first_anomaly_s = seconds

    def has_episode(self, device: str, begin_ms: int, end_ms: int) -> bool:
        """Whether an episode of the device touches this stretch."""
        return any(
            one.device == device and one.start <= end_ms and one.end >= begin_ms for one in self.episodes.values()
        )

    @property
    def is_good(self) -> bool:
        """Whether everything was shown that the demo promises."""
        whole = self.scores == self.scores_expected and not self.scores_twice
        return self.is_interrupted or (whole and bool(self.swaps) and self.first_anomaly_s is not None)

    def to_plain(self) -> dict[str, Any]:
        """For `--json`."""
        view = self.view
        return {
            "ok": self.is_good, "url": self.url, "speed": self.speed, "set_up_s": round(self.set_up_s, 2),
            "streamed_s": round(self.streamed_s, 1), "devices": self.devices, "rows": self.rows,
            "bytes_sent": self.bytes_sent, "lag": self.lag, "first_anomaly_s": self.first_anomaly_s,
            "scores": self.scores, "scores_expected": self.scores_expected, "scores_of_two_contents": self.scores_twice,
            "scored_by": self.scored_by, "swaps": [swap.digest for swap in self.swaps],
            "retraining": None if self.job is None else {"state": self.job.state, "outcome": self.job.outcome},
            "episodes": {} if view is None else {
                state: view.counts.get(state, 0) for state in ("opened", "updated", "closed")
            },
            "dead_letters": {} if view is None else view.dead_letters,
            "bytes_in_blocks": None if view is None else {"in": view.bytes_in, "out": view.bytes_out},
            "error_share_of_bound": None if view is None else view.error_share,
            "error_mean_of_range": None if view is None else view.error_mean,
            "faults": [{"device": device, "kind": kind, "found": found} for device, kind, found in self.faults],
        }


class View(Protocol):
    """How it is shown."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def say(self, line: str) -> None: ...
    def show(self, facts: Facts, snapshot: Snapshot) -> None: ...
    def summary(self, facts: Facts) -> None: ...


def make_view(out: IO[str]) -> View:
    """A live picture where `out` is a terminal, else lines."""
    console = Console(file=out)
    return Picture(console) if console.is_terminal else Lines(console)


class Lines:
    """One line for each thing that happens, and one every few seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._next_s = 0.0
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, line: str) -> None:
        self.console.print(f"{time.monotonic() - self._began:6.1f} s  {line}", highlight=False, soft_wrap=True)

    def show(self, facts: Facts, snapshot: Snapshot) -> None:
        if facts.job is not None:
            self._once("job", facts.job.words.split(",")[0], f"retraining: {facts.job.words.split(',')[0]}")
        for episode in facts.episodes.values():
            state = "closed" if episode.state == "closed" else "opened"
            self._once(episode.id, state, f"{state}: {_told(episode)}")
        for swap in facts.swaps:
            self._once(swap.digest, "swap", f"swap: {swap.digest[:12]} scores now")
        if facts.streamed_s >= self._next_s and facts.view is not None:
            self._next_s = facts.streamed_s + LINE_EVERY_S
            self.say("; ".join((_rate(facts), _kept(facts), f"{facts.view.open_count} open", _digest(facts.view))))

    def _once(self, what: str, state: str, line: str) -> None:
        if self._told.get(what) != state:
            self._told[what] = state
            self.say(line)

    def summary(self, facts: Facts) -> None:
        self.console.print(summary(facts), soft_wrap=True)


class Picture:
    """The live picture."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        self.console.print(f"[dim]{line}[/]", highlight=False)

    def show(self, facts: Facts, snapshot: Snapshot) -> None:
        if self._live is not None and facts.view is not None:
            self._live.update(picture(facts, facts.view, snapshot.fault))

    def summary(self, facts: Facts) -> None:
        colour = "green" if facts.is_good else "red"
        self.console.print(Panel(summary(facts), title="narrows demo", border_style=colour))


def picture(facts: Facts, view: StreamView, fault: str | None) -> Panel:
    """The whole picture of one moment."""
    figures = Table.grid(padding=(0, 3))
    figures.add_column(style="dim")
    figures.add_column()
    figures.add_row("input", Text.assemble(_rate(facts), "  ", (sparks(view.rates), "blue")))
    figures.add_row("kept in blocks", _kept(facts))
    figures.add_row("reconstruction", _error(view))
    figures.add_row("model", _digest(view))
    figures.add_row("retraining", _retraining(facts))
    if view.dead_letters:
        letters = ", ".join(f"{count} {reason}" for reason, count in view.dead_letters.items())
        figures.add_row("dead letters", letters)
    episodes = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("severity", "device", "channels", "kind", "peak / threshold", "lasts"):
        episodes.add_column(head)
    for episode in view.open[:MOST_EPISODES]:
        episodes.add_row(
            Text(episode.severity, COLOURS.get(episode.severity, "")), episode.device, _channels(episode), episode.kind,
            f"{episode.peak / episode.threshold:.1f} ×", f"{(episode.end - episode.start) / 1000:.0f} s",
        )
    if not view.open:
        episodes.add_row(Text("none open", "dim"))
    closed = Table.grid(padding=(0, 2))
    for episode in [one for one in view.recent if one.state == "closed"][:3]:
        closed.add_row(Text("closed", "dim"), episode.device, _channels(episode))
    opened, ended = view.counts.get("opened", 0), view.counts.get("closed", 0)
    title = Text.assemble(f"open episodes: {view.open_count}   ", (f"opened {opened}, closed {ended}", "dim"))
    parts: list[Any] = [figures, Text(), title, episodes]
    if closed.row_count:
        parts += [Text(), closed]
    if fault:
        parts.append(Text(fault, "red"))
    return Panel(
        Group(*parts), title=f"narrows · {facts.devices} servers at {facts.speed:g} times real time",
        subtitle=f"{facts.url}   {facts.streamed_s:.0f} s", border_style="blue",
    )


def summary(facts: Facts) -> Group:
    """What was shown, as a table and the faults one by one."""
    view = facts.view
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("set-up", f"{facts.set_up_s:.1f} s, then {facts.streamed_s:.0f} s of streaming")
    table.add_row("in", f"{facts.rows:,} readings of {facts.devices} servers, {_size(facts.bytes_sent)} of JSON")
    lost = facts.scores_expected - facts.scores
    told = "none lost, none twice" if lost == 0 and not facts.scores_twice else (
        f"{lost} missing, {facts.scores_twice} with two contents"
    )
    table.add_row("scored", f"{facts.scores:,} of {facts.scores_expected:,} rows with a whole window: {told}")
    if view is not None:
        table.add_row("kept", f"{_kept(facts)}; {_error(view)}")
        table.add_row(
            "episodes", f"{view.counts.get('opened', 0)} opened, {view.counts.get('closed', 0)} closed, the first "
            + ("never" if facts.first_anomaly_s is None else f"{facts.first_anomaly_s:.0f} s after the stream began"),
        )
    found = sum(is_found for _, _, is_found in facts.faults)
    table.add_row("faults", f"{found} of {len(facts.faults)} that were made on purpose have an episode")
    swaps = ", ".join(f"{digest[:8]} scored {count:,}" for digest, count in facts.scored_by.items())
    table.add_row("models", f"{len(facts.swaps)} swap: {swaps}" if facts.swaps else f"no swap: {_job_words(facts.job)}")
    faults = Table.grid(padding=(0, 2))
    for device, kind, is_found in facts.faults:
        faults.add_row(Text("found" if is_found else "not found", "green" if is_found else "dim"), device, kind)
    return Group(table, Text(), faults)


def sparks(values: list[float], width: int = 40) -> str:
    """A line of blocks, the newest at the right."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    return "".join(SPARKS[min(len(SPARKS) - 1, int(value / top * (len(SPARKS) - 1) + 0.5))] for value in shown)


def _rate(facts: Facts) -> str:
    view = facts.view
    if view is None:
        return "waiting"
    behind = "no commit yet" if view.lag is None else f"{view.lag:,} behind"
    return f"{view.rate:,.0f} records/s, {behind}"


def _kept(facts: Facts) -> str:
    view = facts.view
    if view is None or not view.bytes_out:
        return "no block closed yet"
    return f"{_size(view.bytes_in)} in, {_size(view.bytes_out)} out, {view.bytes_in / view.bytes_out:.1f} ×"


def _error(view: StreamView) -> str:
    if not view.rows_compared or view.error_mean is None:
        return "no block compared yet"
    largest = "equal to the bit" if view.error_share is None else f"largest error {view.error_share:.0%} of the bound"
    return f"{largest}, mean {view.error_mean:.3%} of the range, over {view.rows_compared:,} rows"


def _digest(view: StreamView) -> str:
    return " → ".join(swap.digest[:8] for swap in view.swaps) or "no output yet"


def _retraining(facts: Facts) -> Any:
    job = facts.job
    if job is None or job.progress is None or job.state == "finished":
        return _job_words(job)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(1.0, job.progress, width=24), job.words)
    return bar


def _job_words(job: Job | None) -> str:
    if job is None:
        return "not asked for yet"
    return f"{job.words}{f': {job.error.splitlines()[-1]}' if job.error.strip() else ''}"


def _channels(episode: Episode) -> str:
    arrows = {"above": " ↑", "below": " ↓"}
    return ", ".join(f"{name}{arrows.get(way, '')}" for name, _, way in episode.channels)


def _told(episode: Episode) -> str:
    times = f"{episode.peak / episode.threshold:.1f} times the threshold"
    return f"{episode.device}, {episode.severity}, {times}, {_channels(episode)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
