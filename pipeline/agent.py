"""The flow of one worker: fetched records in, everything that they trigger delivered, then the commit.

    decode -> columns -> rows -> one pass -> scores, verdicts, blocks -> records -> delivered -> next moves on

Invariant (tests/faults): an output is delivered before `next` passes its trigger; nothing is emitted at or beyond the
`until` of the last acknowledged commit; while a commit that names a new digest is not acknowledged, nothing is
processed. One lock covers batches and commits, so a commit always tells the state between two batches.

Every commit also says that work on what follows is under way, and an orderly end takes that back; so whoever begins
where somebody died goes carefully, until one record is known to be what kills (`engine.attempts`).
"""

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from pipeline.core.maintenance import Plan, Plans
from pipeline.core.records import Records
from pipeline.engine.attempts import Attempts
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.state_topic import Entries, Name, State
from pipeline.engine.transport import TP, Begin, Fetched
from pipeline.errors import NarrowsError, StopWorker
from pipeline.scoring.stream import Model

log = logging.getLogger(__name__)

LEAST_AHEAD = 1_000   # records: `until` is at least this far beyond a commit
AHEAD_COMMITS = 4     # ... and as far as this many commits at the present rate
GIVE_UP_COMMIT_S = 3.0
PLAN_LOOKS, PLAN_LOOK_S = 100, 0.1   # until what a commit knew of maintenance is read here too


class Line(Protocol):
    """One stream as the agent sees it: decoding, state and encoding, all without I/O."""

    name: str
    topic: str

    def assign(
        self, partition: int, model: Model, emit_from: int, mark_time: int, states: Mapping[Name, State]
    ) -> None: ...
    def revoke(self, partition: int) -> None: ...
    def swap(self, partition: int, model: Model) -> int: ...
    def heed(self, partition: int, plan: Plan) -> None: ...
    def mark(self, partition: int, next_offset: int) -> tuple[int, int]: ...
    def changed(self, partition: int) -> dict[Name, State | None]: ...
    def settled(self) -> None: ...
    def take(self, batch: Sequence["Part"]) -> list[Any]: ...
    def provisional(self, partition: int, trigger: int) -> list[Any]: ...
    @property
    def silence_s(self) -> float: ...


class Models(Protocol):
    """Loaded bundles."""

    def wanted(self, stream: str) -> Model: ...
    def load(self, stream: str, digest: str) -> Model: ...


class Outlets(Protocol):
    """The world outside of the agent."""

    async def deliver(self, outputs: Sequence[Any]) -> None: ...
    async def commit(self, commits: Mapping[TP, tuple[int, str]]) -> bool: ...
    async def read_state(self, tp: TP, epoch: str, next_offset: int) -> tuple[dict[Name, State], list[bytes]]: ...
    def state_record(self, partition: int, key: bytes, value: bytes | None) -> Any: ...
    def assigned(self) -> set[TP]: ...
    def begun(self, tp: TP) -> Begin | None: ...


@dataclass(slots=True)
class Part:
    """Records of one partition within a batch, with what is common to all streams. Arrays are (r,)."""

    tp: TP
    records: Records
    stream_time: np.ndarray
    emit_from: int
    crashed: frozenset[int] = frozenset()   # offsets of records that nobody may look at


@dataclass(slots=True)
class Held:
    """One partition that this worker holds.

    next     : all triggers below it are delivered.   position : the next offset to read; below `next` in a replay.
    until    : of the last acknowledged commit, -1 before the first.
    found_until : what the owner before promised; no new digest or plan is named below it.
    plan     : of maintenance, as the last commit names it.
    told     : what the last acknowledged commit says.
    attempts : deaths at the commit.   crashed : offsets of records that killed whoever read them.
    """

    tp: TP
    next: int
    found: Checkpoint | None
    digests: dict[str, str]
    entries: Entries
    epoch: str
    stream_time: int
    leftovers: list[bytes]
    attempts: Attempts
    crashed: frozenset[int]
    plan: Plan
    found_until: int = -1
    position: int = -1
    until: int = -1
    committed: int = -1
    told: Checkpoint | None = None
    read: int = 0              # records since the last commit
    idle_since: float = field(default_factory=time.monotonic)
    is_told: bool = False      # what is open was written, as provisional
    end: int = -1
    models: dict[str, Model] = field(default_factory=dict)

    @property
    def replaying(self) -> bool:
        return self.position < self.next

    @property
    def lag(self) -> int:
        return 0 if self.end < 0 else max(0, self.end - max(self.position, self.next))


class Agent:
    """All topics of one worker.

    observe : called after each batch with (parts, outputs, seconds); for metrics.
    idle_after_s : how long no record comes to a partition before what it has open is written as provisional; at least
        the streams' silence. None: never.
    plans : of maintenance; others read them in. None: there is none.
    """

    def __init__(
        self, lines: Sequence[Line], models: Models, outlets: Outlets, commit_interval_s: float,
        observe: Callable[[list[Part], list[Any], float], None], idle_after_s: float | None = None,
        plans: Plans | None = None,
    ) -> None:
        self._plans = plans or Plans()
        self._lines: dict[str, list[Line]] = defaultdict(list)
        for line in lines:
            self._lines[line.topic].append(line)
        self._models, self._outlets = models, outlets
        self._interval_s = commit_interval_s
        self._observe = observe
        self._idle_after_s = idle_after_s
        self._lock = asyncio.Lock()
        self._held: dict[TP, Held] = {}
        self._gone: list[TP] = []
        self._unsettled = False     # the streams' state is ahead of what was delivered
        self._committing = False    # a commit is on its way to the broker
        self._died = False          # of an error that nobody raised on purpose
        self._committed_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="narrows-scoring")
        self.largest_batch = 0
        self.swaps = 0
        self.orphans = 0

    # ---------------------------------------------------------------- one batch

    async def take(self, fetched: list[Fetched]) -> None:
        """One poll: everything that its records trigger is delivered when this returns.

        Faust ends by cancelling who takes; that must not cut a batch in two, whose outputs would be written again. So
        it goes on by itself, and `rest` waits for it.
        """
        await asyncio.shield(self._take(fetched))

    async def _take(self, fetched: list[Fetched]) -> None:
        async with self._lock:
            self._forget_gone()
            try:
                left = [await self._carefully(part) for part in fetched]
                await self._work([part for part in left if part is not None])
            except (asyncio.CancelledError, NarrowsError):
                raise
            except BaseException:
                self._died = True
                raise
            if time.monotonic() - self._committed_at >= self._interval_s:
                await self._commit()

    async def _carefully(self, fetched: Fetched) -> Fetched | None:
        """Go step by step, nothing else in work, through what killed somebody; returns what lies beyond, if anything.

        Each step is told by a commit before it, and its end by the next one.
        """
        held = await self._hold(fetched)
        if held is None:
            return None
        attempts, records = held.attempts, fetched.records
        if records.offset[-1] < held.next or not attempts.is_suspect(held.next):
            return fetched
        replayed = records.before(held.next)
        if replayed:
            await self._work([fetched._replace(records=replayed)])
            if held.position <= replayed.offset[-1]:
                return None    # taken away meanwhile
            records = records.since(held.next)
        while records and self._held.get(held.tp) is held and attempts.is_suspect(int(records.offset[0])):
            held.next = int(records.offset[0])      # nothing lies between in the log
            if attempts.is_deadly:
                log.error(
                    "%s[%d]: the record at offset %d ended its worker %d times and goes to the dead letters",
                    held.tp.topic, held.tp.partition, held.next, attempts.alone,
                )
                held.crashed |= {held.next}
                held.attempts = attempts = Attempts()
                break
            stop = attempts.begin_step(held.next)
            if not await self._commit_until(held):
                return None
            step = records.before(stop)
            await self._work([fetched._replace(records=step)])
            if held.position <= step.offset[-1]:
                return None    # taken away meanwhile: nothing may commit beyond what was worked on
            attempts.end_step()
            records = records.since(stop)
        if not await self._commit_until(held):
            return None
        return fetched._replace(records=records) if records else None

    async def _work(self, fetched: list[Fetched]) -> None:
        """Compute and deliver what these records trigger."""
        ready = [part for part in fetched if await self._ready(part)]
        # No await between the last look at the assignment and the state.
        ready = [part for part in ready if part.tp in self._held and self._is_on(part)]
        held = [self._held[part.tp] for part in ready]
        parts = [self._part(part, one) for part, one in zip(ready, held, strict=True)]
        if not parts:
            return
        began = time.monotonic()
        self._unsettled = True
        outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, parts)
        await self._outlets.deliver(outputs)
        self._unsettled = False
        for part, one in zip(parts, held, strict=True):
            if self._held.get(part.tp) is not one:
                self.orphans += 1   # taken away meanwhile: outputs stand, the next owner makes them again, equal
                continue
            one.position = int(part.records.offset[-1]) + 1
            one.next = max(one.next, one.position)
            one.stream_time = int(part.stream_time[-1])
            one.read += len(part.records)
            one.idle_since, one.is_told = time.monotonic(), False
        self._observe(parts, outputs, time.monotonic() - began)

    def _part(self, fetched: Fetched, held: Held) -> Part:
        records, held.end = fetched.records, fetched.end
        self.largest_batch = max(self.largest_batch, len(records))
        running = np.maximum(np.maximum.accumulate(records.timestamp), held.stream_time)
        return Part(fetched.tp, records, running, held.next, held.crashed)

    def _compute(self, parts: list[Part]) -> list[Any]:
        """In the scoring thread: nobody else touches the streams' state meanwhile."""
        outputs: list[Any] = []
        by_topic: dict[str, list[Part]] = defaultdict(list)
        for part in parts:
            by_topic[part.tp.topic].append(part)
        for topic, group in by_topic.items():
            for line in self._lines[topic]:
                outputs += line.take(group)
        return outputs

    def _is_on(self, fetched: Fetched) -> bool:
        """Whether the assignment that fetched these records is still the partition's."""
        return self._outlets.begun(fetched.tp) is fetched.begin

    async def _hold(self, fetched: Fetched) -> Held | None:
        """The partition of these records, begun where it is new; None where they are of an assignment that is over.

        Raises StopWorker where records before these never came here: they would be lost in silence.
        """
        if not self._is_on(fetched):
            return None
        held = self._held.get(fetched.tp)
        if held is None:
            held = await self._begin(fetched)
        if held is not None and fetched.since != held.position:
            raise StopWorker(
                f"{fetched.tp.topic}[{fetched.tp.partition}]: records from {held.position} to {fetched.since} went "
                "astray in this worker; the next one goes on from the commit"
            )
        return held

    async def _ready(self, fetched: Fetched) -> bool:
        """Whether these records may be processed now: promised far enough, on the right model."""
        last = int(fetched.records.offset[-1])
        held = self._held.get(fetched.tp)
        if held is None or not self._is_on(fetched):
            return False
        if held.until < 0 and not await self._commit_until(held):   # digest and attempt are told before the work
            return False
        if last >= held.until and last >= held.next and not await self._commit_until(held, last + 1):
            return False
        return await self._swap(held)

    async def _begin(self, fetched: Fetched) -> Held | None:
        """Take a partition up where its commit says; None where it is taken away meanwhile."""
        tp, begin = fetched.tp, fetched.begin
        found = begin.checkpoint
        lines = self._lines[tp.topic]
        models = {
            line.name: self._models.load(line.name, found.digests[line.name])
            if found and line.name in found.digests else self._models.wanted(line.name)
            for line in lines
        }
        states: dict[Name, State] = {}
        leftovers: list[bytes] = []
        plan = self._plans.wanted()
        if found is not None:
            plan = await self._plan_as_of(found.plan)
            states, leftovers = await self._outlets.read_state(tp, found.epoch, begin.next)
            if not self._is_on(fetched):
                return None
        mark, mark_time = (found.mark, found.mark_time) if found else (begin.next, -1)
        for line in lines:
            own = {name: state for name, state in states.items() if name.stream == line.name}
            line.assign(tp.partition, models[line.name], begin.next, mark_time, own)
            line.heed(tp.partition, plan)
        epoch = secrets.token_hex(6)
        held = Held(
            tp, begin.next, found, {name: model.digest for name, model in models.items()},
            Entries(tp.topic, tp.partition, epoch, begin.next, states), epoch, mark_time, leftovers,
            Attempts.found(found, begin.next, fetched.end), frozenset(found.crashed if found else ()), plan,
            found_until=found.until if found else -1, position=mark, models=models,
        )
        self._held[tp] = held
        log.info("begin %s[%d] at %d, replay from %d", tp.topic, tp.partition, begin.next, mark)
        return held

    async def _swap(self, held: Held) -> bool:
        """Change to the wanted models and plan where that is allowed: at a commit that names them, none in flight."""
        if held.replaying or held.next < held.found_until:
            return True
        wanted = {line.name: self._models.wanted(line.name) for line in self._lines[held.tp.topic]}
        changed = {name: model for name, model in wanted.items() if model.digest != held.digests[name]}
        plan = self._plans.wanted()
        if not changed and plan.end == held.plan.end:
            return True
        held.digests = {name: model.digest for name, model in wanted.items()}
        held.plan = plan
        if not await self._commit_until(held):
            return False
        for line in self._lines[held.tp.topic]:
            line.heed(held.tp.partition, plan)
            if line.name in changed:
                model = changed[line.name]
                await asyncio.get_running_loop().run_in_executor(self._thread, line.swap, held.tp.partition, model)
                held.models[line.name] = model
                self.swaps += 1
                log.info(
                    "swap %s %s[%d] at %d to %s", line.name, held.tp.topic, held.tp.partition, held.next,
                    model.digest[:12],
                )
        return True

    async def _plan_as_of(self, end: int) -> Plan:
        """What a commit knew of maintenance; its last record may come here a moment later than where it was made."""
        for _ in range(PLAN_LOOKS):
            if self._plans.end >= end:
                break
            await asyncio.sleep(PLAN_LOOK_S)
        else:
            log.warning("a commit names offset %d of narrows.maintenance, which ends at %d: was it made anew?", end,
                        self._plans.end)
        return self._plans.as_of(end)

    # ---------------------------------------------------------------- commits

    async def commit(self) -> bool:
        """Commit every partition as it stands between two batches; False where nothing was committed."""
        async with self._lock:
            return await self._commit()

    async def tick(self) -> None:
        """Commit what an idle stream left, where the interval has passed; write what an idle partition has open."""
        if self._lock.locked():
            return
        if time.monotonic() - self._committed_at >= self._interval_s:
            await self.commit()
        if self._idle_after_s is not None:
            await self._tell_open(self._idle_after_s)

    async def _tell_open(self, idle_after_s: float) -> None:
        """Stream time stands still where no record comes: what silence would end there is written as provisional."""
        async with self._lock:
            self._forget_gone()
            for tp, held in list(self._held.items()):
                lines = self._lines[tp.topic]
                limit_s = max(idle_after_s, *(line.silence_s for line in lines))
                is_idle = not (held.is_told or held.replaying or held.lag) and held.until >= 0
                if not is_idle or time.monotonic() - held.idle_since < limit_s or tp not in self._outlets.assigned():
                    continue
                held.is_told = True
                outputs = await asyncio.get_running_loop().run_in_executor(self._thread, _open_of, lines, held)
                await self._outlets.deliver(outputs)

    async def _commit_until(self, held: Held, reach: int = 0) -> bool:
        """Commit until the broker acknowledges; False once the partition is taken away."""
        while self._held.get(held.tp) is held:
            if held.tp not in self._outlets.assigned():
                self._drop(held.tp)
                return False
            if await self._commit(must=held.tp, reach=reach):
                return True
            await asyncio.sleep(0.2)
        return False

    async def _commit(self, must: TP | None = None, reach: int = 0, at_work: bool = True) -> bool:
        """must : committed even where nothing changed.  reach : its `until` lies beyond this offset."""
        self._committed_at = time.monotonic()
        if self._unsettled:
            return False
        mine = self._outlets.assigned()
        commits: dict[TP, tuple[int, str]] = {}
        told: dict[TP, tuple[Held, Checkpoint]] = {}
        records: list[Any] = []
        for tp, held in self._held.items():
            changed: dict[Name, State | None] = {}
            for line in self._lines[tp.topic]:
                changed |= line.changed(tp.partition)
            is_new = held.next != held.committed or changed or held.entries.pending or not at_work
            if tp not in mine or (tp != must and not is_new):
                continue
            told[tp] = held, self._checkpoint(held, reach if tp == must else 0, at_work)
            commits[tp] = held.next, told[tp][1].encode()
            for key, value in held.entries.before_commit(held.next, changed):
                records.append(self._outlets.state_record(tp.partition, key, value))
        if not commits:
            return False
        await self._outlets.deliver(records)
        if any(self._held.get(tp) is not held for tp, (held, _) in told.items()):
            return False    # taken away meanwhile: another owner may have committed, which this would turn back
        if not await self._send(commits):
            return False
        tombstones: list[Any] = []
        for tp, (held, checkpoint) in told.items():
            held.entries.acknowledged(commits[tp][0])
            held.committed, held.until, held.told, held.read = commits[tp][0], checkpoint.until, checkpoint, 0
            tombstones += [self._outlets.state_record(tp.partition, key, None) for key in held.leftovers]
            held.leftovers = []
        for topic in {tp.topic for tp in told}:
            for line in self._lines[topic]:
                line.settled()
        await self._outlets.deliver(tombstones)
        return True

    async def _send(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        self._committing = True
        try:
            return await self._outlets.commit(commits)
        finally:
            self._committing = False

    def _checkpoint(self, held: Held, reach: int, at_work: bool) -> Checkpoint:
        """What a commit of this partition says now."""
        if held.replaying and held.found is not None:
            mark, mark_time = held.found.mark, held.found.mark_time   # the state is not whole yet
        elif held.replaying:
            mark, mark_time = held.next, held.stream_time
        else:
            marks = [line.mark(held.tp.partition, held.next) for line in self._lines[held.tp.topic]]
            mark, mark_time = min(marks)
        ahead = max(LEAST_AHEAD, AHEAD_COMMITS * held.read, 2 * self.largest_batch)
        until = max(held.next + ahead, held.until, held.found_until, reach)
        attempts, attempt_end = held.attempts.told(held.next, at_work)
        crashed = tuple(sorted(offset for offset in held.crashed if offset >= mark))
        return Checkpoint(
            mark, mark_time, until, held.epoch, held.digests, attempts, attempt_end, crashed, held.plan.end
        )

    # ---------------------------------------------------------------- assignments

    async def drop(self, tps: Iterable[TP]) -> None:
        """These partitions are being taken away: commit what can be within a moment, then forget them."""
        await self.rest()
        for tp in list(tps):
            self._drop(tp)

    async def rest(self) -> None:
        """Commit what can be within a moment, and that nothing is in work any more: an orderly end is no crash."""
        if self._died:
            return
        try:
            async with asyncio.timeout(GIVE_UP_COMMIT_S), self._lock:
                if await self._commit(at_work=False):
                    return
        except TimeoutError:
            log.warning("no commit at the end: a batch was in work; its outputs will be made again")
        if not self._committing:
            await self._take_back()

    async def _take_back(self) -> None:
        """The last commits once more, but that nothing is in work any more."""
        mine = self._outlets.assigned()
        again: dict[TP, tuple[int, str]] = {}
        for tp, held in self._held.items():
            if held.told is not None and tp in mine:
                attempts, attempt_end = held.attempts.told(held.committed, False)
                told = msgspec.structs.replace(held.told, attempts=attempts, attempt_end=attempt_end)
                again[tp] = held.committed, told.encode()
        if again:
            await self._send(again)

    def _drop(self, tp: TP) -> None:
        """A batch still in work becomes an orphan: its outputs stand, its position goes nowhere."""
        if self._held.pop(tp, None) is not None:
            self._gone.append(tp)

    def _forget_gone(self) -> None:
        for tp in self._gone:
            if tp not in self._held:
                for line in self._lines[tp.topic]:
                    line.revoke(tp.partition)
        self._gone.clear()

    # ---------------------------------------------------------------- looking in

    @property
    def held(self) -> Mapping[TP, Held]:
        """Partitions by name, for metrics and the watchdog."""
        return self._held

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _open_of(lines: Sequence[Line], held: Held) -> list[Any]:
    return [output for line in lines for output in line.provisional(held.tp.partition, held.next)]
