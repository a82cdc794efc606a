"""One stream through commits, crashes and a swap, as the agent drives it: the outputs are those of one run with the
swap alone.

Ids and contents; layouts with and without joining; late rows, repeats, gaps, silence, episodes that outlive a commit.
And records of many rows mean what as many records mean that came at the same moment.
"""

from collections import namedtuple
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline.agent import Part
from pipeline.config import Match
from pipeline.core.block_rules import BlockRule, BlockRules
from pipeline.core.contract import Channel, Contract
from pipeline.core.maintenance import Plan, Window
from pipeline.core.records import Records
from pipeline.core.rows import MAX_DEVICES
from pipeline.engine.state_topic import Entries, read_entries
from pipeline.engine.transport import TP
from pipeline.formats import Format
from pipeline.formats.arrow import write_stream
from pipeline.line import MAX_REPLAY, Line, OutputTopics
from pipeline.scoring.blank import blank_model
from pipeline.sinks import BlockLabel, Record, read_block_label
from tests.support.models import latent_model, small_contract, small_model

Raw = namedtuple("Raw", "offset timestamp key value")
TOPICS = OutputTopics("scores", "anomalies", "blocks", "features", "dead", "codecs")
TP0 = TP("t", 0)
DEVICES = ("one", "two", "three")
STORIES = 40
DEFAULT_RULES = BlockRules()
LOOSE = (Channel(name="c0", bound=2.5), Channel(name="c1", bound=2.5))

@dataclass(frozen=True)
class Kind:
    """A layout of the records, the contract that reads it, and how many members each of the two models has."""

    contract: Contract
    spec: Format
    members: tuple[int, int] = (1, 3)
    rules: BlockRules = DEFAULT_RULES


KINDS = {
    "wide": Kind(small_contract(2, window=4, memory=10), Format()),
    "resampled": Kind(small_contract(2, window=4, memory=10, resample=True), Format(), (3, 1)),
    "long": Kind(small_contract(2, window=4, memory=10), Format(layout="long")),
    "latents": Kind(
        msgspec.structs.replace(small_contract(2, window=4, memory=10), channels=LOOSE), Format(),
        rules=BlockRules(
            kind="auto", rules=(BlockRule(devices=("t*",), channels=("c0",), kind="latent"),), in_episode=0,
            rows_before=3, summaries=True,
        ),
    ),
    "thinned": Kind(small_contract(2, window=4, memory=10, hop=3), Format(), (1, 1)),
    "many rows": Kind(small_contract(2, window=4, memory=10), Format(encoding="arrow")),
    "many rows, resampled": Kind(small_contract(2, window=4, memory=10, resample=True), Format(encoding="arrow")),
}


def make_log(kind: Kind, rng: np.random.Generator) -> list[Raw]:
    """Stretches of a device's rows, normal ones and faults, with jumps of its own clock and pauses of all."""
    clocks = dict.fromkeys(range(len(DEVICES)), 1_000_000)
    now = 1_000_000
    log: list[Raw] = []

    def send(device: int, body: dict[str, object]) -> None:
        log.append(Raw(len(log), now, DEVICES[device].encode(), msgspec.json.encode(body)))

    for _ in range(rng.integers(6, 20)):
        device = int(rng.integers(len(DEVICES)))
        clocks[device] += int(rng.choice([0, 0, 0, 0, -3_000, 7_000, 30_000]))
        now += int(rng.choice([0, 0, 0, 3_000, 12_000]))
        pace = int(rng.choice([0, 300, 1_000]))
        height = float(rng.choice([0.0, 0.0, 60.0]))
        for _ in range(rng.integers(1, 15)):
            clocks[device] += 1_000
            now += pace
            values = {"c0": float(rng.normal() + height), "c1": float(rng.normal() - height)}
            head = {"device": DEVICES[device], "ts": clocks[device]}
            if kind.spec.layout == "wide":
                send(device, {**head, "values": values})
            else:
                for name, value in values.items():
                    send(device, {**head, "channel": name, "value": value})
        if rng.random() < 0.2:
            log.append(log[-1]._replace(offset=len(log)))     # sent again
    return packed(log, rng)[0] if kind.spec.encoding == "arrow" else log


def packed(log: list[Raw], rng: np.random.Generator) -> tuple[list[Raw], list[Raw]]:
    """The rows as Arrow records of 1 to 12 rows, and as JSON records that came together."""
    tables: list[Raw] = []
    rows: list[Raw] = []
    while len(rows) < len(log):
        group = log[len(rows) : len(rows) + int(rng.integers(1, 13))]
        bodies = [msgspec.json.decode(one.value) for one in group]
        batch = pa.record_batch({
            "device": [body["device"] for body in bodies], "ts": [body["ts"] for body in bodies],
            **{name: pa.array([body["values"][name] for body in bodies], pa.float64()) for name in ("c0", "c1")},
        })
        now = group[-1].timestamp
        tables.append(Raw(len(tables), now, None, write_stream(batch)))
        rows += [one._replace(timestamp=now) for one in group]
    return tables, rows


def id_of(output: Record) -> str:
    """A block's stands in its label, the others' in their bodies."""
    if output.topic == "blocks":
        return read_block_label(output.headers).id
    return str(msgspec.json.decode(output.value or b"{}")["id"])


class Run:
    """A line with the commits of one partition around it; `outputs` : (topic, id) -> contents that were written.

    swap_at : the commit at this offset names another model, and knows of `windows`.
    max_devices : what the line keeps of the partition.  silence_ms : see `Stream`.
    """

    def __init__(
        self, kind: Kind, log: list[Raw], swap_at: int, max_devices: int = MAX_DEVICES, max_replay: int = MAX_REPLAY,
        room: int = 256, silence_ms: int | None = None, windows: tuple[Window, ...] = (),
    ) -> None:
        self.silence_ms, self.plan = silence_ms, Plan(1, windows)
        self.kind, self.log, self.swap_at, self.max_devices = kind, log, swap_at, max_devices
        self.max_replay, self.restored, self.room = max_replay, 0, room
        self.models = (
            [latent_model(kind.contract, seed, 1.0) for seed in range(2)] if kind.rules.wants_latents else
            [small_model(kind.contract, seed, members, 1.0) for seed, members in enumerate(kind.members)]
        )
        self.outputs: dict[tuple[str, str], set[bytes]] = {}
        self.labels: list[BlockLabel] = []
        self.frames: list[bytes] = []
        self.topic: dict[bytes, bytes] = {}
        self.epochs = 0
        self.commit_facts = (0, 0, -1, "e0")             # next, mark, stream time as of mark, epoch
        self.begin()

    def begin(self) -> None:
        """A new worker takes over from the commit."""
        self.next, position, mark_time, epoch = self.commit_facts
        states, _ = read_entries(self.topic.items(), "t", 0, epoch, self.next)
        self.restored += sum(name.kind == "aside" for name in states)
        self.epochs += 1
        self.epoch = f"e{self.epochs}"
        self.entries = Entries("t", 0, self.epoch, self.next, states)
        self.line = Line(
            "pump", "t", self.kind.contract, self.kind.spec, Match(), TOPICS, max_devices=self.max_devices,
            max_replay=self.max_replay, room=self.room, rules=self.kind.rules, silence_ms=self.silence_ms,
        )
        self.is_swapped = 0 < self.swap_at <= self.next
        self.line.assign(0, self.models[self.is_swapped], self.next, mark_time, states)
        self.line.heed(0, self.plan if self.is_swapped else Plan())
        self.position, self.stream_time = position, mark_time

    def read(self, count: int) -> None:
        if self.position == self.next == self.swap_at and not self.is_swapped:
            self.is_swapped = True
            self.commit()
            self.line.heed(0, self.plan)
            self.line.swap(0, self.models[1])
        end = self.position + count
        records = self.log[self.position : end if self.is_swapped else min(end, self.swap_at)]
        if not records:
            return
        stamps = np.array([record.timestamp for record in records])
        running = np.maximum(np.maximum.accumulate(stamps), self.stream_time)
        for output in self.line.take([Part(TP0, Records.of(records), running, self.next)]):
            if output.topic != "codecs":                 # what readers of blocks need, once a worker
                if output.topic == "blocks":
                    self.labels.append(read_block_label(output.headers))
                    self.frames.append(output.value or b"")
                self.outputs.setdefault((output.topic, id_of(output)), set()).add(
                    (output.value or b"") + b"".join(value for _, value in output.headers if output.topic == "blocks")
                )
        self.position += len(records)
        self.next = max(self.next, self.position)
        self.stream_time = int(running[-1])

    def commit(self, is_answered: bool = True) -> None:
        """is_answered False: it stands, and the worker does not know."""
        if self.position < self.next or (self.next == self.swap_at and not self.is_swapped):
            return    # in a replay the commit that was found stands; at the swap only the one that names the new model
        mark, mark_time = self.line.mark(0, self.next)
        assert self.next - mark <= self.max_replay
        for key, value in self.entries.before_commit(self.next, self.line.changed(0)):
            if value is None:
                self.topic.pop(key, None)
            else:
                self.topic[key] = value
        self.commit_facts = (self.next, mark, mark_time, self.epoch)
        if is_answered:
            self.entries.acknowledged(self.next)
            self.line.settled()


def story(kind: Kind, seed: int) -> tuple[np.random.Generator, list[Raw], int]:
    """Chance, a log, and where another model comes in."""
    rng = np.random.default_rng(seed)
    log = make_log(kind, rng)
    return rng, log, int(rng.integers(1, len(log)))


def break_often(run: Run, rng: np.random.Generator) -> None:
    """To the end of the log, in small batches, with commits, commits whose answer is lost, and new workers between."""
    while run.position < len(run.log):
        run.read(int(rng.integers(1, 12)))
        what = rng.random()
        if what < 0.4:
            run.commit(is_answered=what > 0.05)
        elif what < 0.5:
            run.begin()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_commits_and_crashes_change_no_output(name):
    kind = KINDS[name]
    told: list[BlockLabel] = []
    for seed in range(STORIES):
        rng, log, swap_at = story(kind, seed)
        max_devices = (1, 2, MAX_DEVICES)[seed % 3]
        whole, broken = Run(kind, log, swap_at, max_devices), Run(kind, log, swap_at, max_devices)
        while whole.position < len(log):
            whole.read(len(log))
        break_often(broken, rng)
        assert broken.outputs == whole.outputs, f"{name}, seed {seed}"
        told += whole.labels
    assert any(label.fine for label in told) or kind.contract.hop > 1
    assert any(label.latent for label in told) == kind.rules.wants_latents


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_mark_that_trails_little_changes_no_output(name):
    kind, restored = KINDS[name], 0
    for seed in range(STORIES // 2):
        rng, log, swap_at = story(kind, seed)
        max_devices = (2, MAX_DEVICES)[seed % 2]
        whole = Run(kind, log, swap_at, max_devices)
        broken = Run(kind, log, swap_at, max_devices, int(rng.integers(1, min(50, max(3, len(log) // 4)))))
        while whole.position < len(log):
            whole.read(len(log))
        break_often(broken, rng)
        restored += broken.restored
        assert broken.outputs == whole.outputs, f"{name}, seed {seed}"
    assert restored > 3


@pytest.mark.parametrize("name", ["wide", "latents", "thinned"])
def test_a_stream_without_a_model_says_so_of_each_row_and_scores_as_ever_from_its_first_one_on(name):
    """Over commits and crashes, too; the rows that it kept meanwhile are in the scores."""
    kind, unscored = KINDS[name], 0
    for seed in range(STORIES // 2):
        rng, log, swap_at = story(kind, seed)
        whole, broken, known = (Run(kind, log, swap_at) for _ in range(3))
        for run, first in ((whole, blank_model(kind.contract)), (broken, blank_model(kind.contract)),
                           (known, whole.models[1])):
            run.models = [first, run.models[1]]
            run.begin()
        for run in (whole, known):
            while run.position < len(log):
                run.read(len(log))
        break_often(broken, rng)
        assert broken.outputs == whole.outputs, f"{name}, seed {seed}"
        told, all_along = (
            {name: msgspec.json.decode(content) for (topic, name), contents in run.outputs.items()
             for content in contents if topic == "scores"} for run in (whole, known)
        )
        before = [one for one in told.values() if one["digest"] == "none"]
        assert {(one["score"], one["reason"], one["is_anomaly"]) for one in before} <= {(None, "no_model", False)}
        assert all(one["score"] == all_along[name]["score"] for name, one in told.items() if one["digest"] != "none")
        assert any(topic == "blocks" for topic, _ in whole.outputs)
        unscored += len(before)
    assert unscored > 500


@pytest.mark.parametrize("name", ["wide", "long", "thinned"])
def test_silent_devices_and_maintenance_are_the_same_over_commits_and_crashes(name):
    """From the swap on the windows are known; before it nobody has heard of them."""
    kind, silent, muted = KINDS[name], 0, 0
    for seed in range(STORIES):
        rng, log, swap_at = story(kind, seed)
        windows = []
        for device in ("one", "t*", "*"):
            begin, length = int(rng.integers(1_000_000, log[-1].timestamp + 1)), int(rng.integers(1, 60_000))
            windows.append(Window(id=device, stream="pump", device=device, begin_ms=begin, end_ms=begin + length))
        how = {"max_devices": (2, MAX_DEVICES)[seed % 2], "silence_ms": (10_000, 25_000)[seed % 2],
               "windows": tuple(windows)}
        whole = Run(kind, log, swap_at, **how)
        broken = Run(kind, log, swap_at, max_replay=int(rng.integers(5, 200)), **how)
        while whole.position < len(log):
            whole.read(len(log))
        break_often(broken, rng)
        assert broken.outputs == whole.outputs, f"{name}, seed {seed}"
        told = [msgspec.json.decode(content) for (topic, _), contents in whole.outputs.items() for content in contents
                if topic in ("scores", "anomalies")]
        silent += sum(one.get("kind") == "silence" and one.get("state") == "opened" for one in told)
        muted += sum(one.get("is_muted", False) for one in told)
    assert silent > 5
    assert muted > 100


PLACES = {"id", "offset", "index", "trigger", "episode_id"}


def meanings(run: Run) -> list[tuple[str, bytes]]:
    """What was written, without the places in the log that it names."""
    found = [("blocks", frame) for frame in run.frames]
    for (topic, _), contents in run.outputs.items():
        for content in contents if topic != "blocks" else ():
            body = {name: item for name, item in msgspec.json.decode(content).items() if name not in PLACES}
            found.append((topic, msgspec.json.encode(body)))
    return sorted(found)


@pytest.mark.parametrize("resample", [False, True])
def test_a_record_of_many_rows_means_what_as_many_records_mean(resample):
    contract = small_contract(2, window=4, memory=10, resample=resample)
    for seed in range(STORIES // 2):
        rng = np.random.default_rng(seed)
        tables, rows = packed(make_log(Kind(contract, Format()), rng), rng)
        room = int(rng.choice([3, 256]))     # a device has more rows in a record than there is room for
        one = Run(Kind(contract, Format()), rows, len(rows), room=room)
        many = Run(Kind(contract, Format(encoding="arrow")), tables, len(tables), room=room)
        for run in (one, many):
            while run.position < len(run.log):
                run.read(int(rng.integers(1, 12)))
        assert len(many.outputs) == len(one.outputs), f"seed {seed}"      # so ids are unique
        assert meanings(many) == meanings(one), f"seed {seed}"
