"""`narrows demo`: the whole pipeline on one machine, on real data, ending by itself with a summary.

Real Kafka and Redis as children; a baseline trained on the first minutes of a recorded fleet; worker and trainer as
they run anywhere. The quiet part goes into the topic at once, as what a topic still holds from before, the rest of the
recording at its pace. The autoencoder that the trainer makes of all that meanwhile is the first swap: it has seen more
and finds more. Every figure is measured on what the topics hold.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from pipeline.cli.dashboard import open_watch
from pipeline.cli.demo_view import Facts, Job, View, make_view
from pipeline.cli.options import Json
from pipeline.cli.replay import Pace, Sent, publish
from pipeline.config import Config, Stream, load_config
from pipeline.dashboard.page import listen, serve
from pipeline.dashboard.watch import Watch
from pipeline.errors import BadInput, NarrowsError, Unreachable
from pipeline.formats.files import FileOptions, Table, read_table
from pipeline.local import LocalKafka, LocalRedis
from pipeline.local.server import Server, free_port
from pipeline.retraining.queue import JobQueue, connect
from pipeline.sinks import SeenOnce, read_score
from pipeline.topics import create, read_topic

STREAM = "fleet"
TOPIC = "fleet-readings"
MARKER = "narrows-demo"
PARTITIONS = 4
STEP_MS = 1000  # between two readings of the recording
LOOPS = 4  # the recording goes on from its start where the trainer needs longer than it lasts
BASELINE_SHARE = 0.5  # of the quiet part that the baseline learns from
ASK_ROWS = 300  # beyond the quiet part, after which the new model is asked for
AFTER_SWAP_S = 15  # shown of the new model
READY_S = 90
SETTLE_S = 60
LATE_MS = 30_000  # an episode that begins so late after a fault is still its own


class Fault(msgspec.Struct, frozen=True):
    """What was done to a server while it was recorded; seconds since the first reading."""

    device: str
    kind: str
    what: str
    begin_s: float
    end_s: float


class Fleet(msgspec.Struct, frozen=True):
    """The recording's own description."""

    begin_ms: int
    quiet_s: float
    units: dict[str, str]
    faults: list[Fault]


@dataclass
class Playing:
    """The replay's thread, as the view sees it. shift_ms: what was added to the recording's times."""

    shift_ms: int = 0
    sent: Sent = field(default_factory=Sent)
    stop: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    has_played_once: bool = False


def demo(
    stay: Annotated[bool, typer.Option("--stay", help="Go on in real time until interrupted.")] = False,
    speed: Annotated[float, typer.Option(min=1, help="Times real time.")] = 12.0,
    folder: Annotated[Path, typer.Option(help="Data and logs; what an earlier demo left there is removed.")]
    = Path(".narrows/demo"),
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = 0,
    json: Json = False,
) -> None:
    """Train, stream, alert, retrain and swap on this machine: real Kafka, real Redis, a real recorded fleet.

    Example: narrows demo --stay
    """
    began = time.monotonic()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # its retries while topics are made are no news
    view = make_view(sys.stderr if json else sys.stdout)
    _clear(folder)
    with ExitStack() as stack:
        history, live, fleet = _read_fleet()
        view.say(f"{len(history.devices)} servers; {len(history)} quiet readings, {len(live)} with faults to come")
        kafka, redis, bundle = _set_up(stack, folder, history, fleet, view.say)
        tree = _configure(folder, kafka, redis, bundle, len(history) + ASK_ROWS)
        create(tree.kafka.client_settings(), [TOPIC], partitions=PARTITIONS)
        children = _start(stack, folder, tree)
        watch, url = stack.enter_context(_served(tree, port))
        jobs = JobQueue(connect(tree.redis.url.reveal()))
        _wait_ready(tree, children)
        set_up_s = time.monotonic() - began
        view.say(f"set up in {set_up_s:.1f} s; the page is at {url}")
        facts = Facts(url, speed, set_up_s, len(live.devices), len(live), len(history))
        playing = Playing()
        thread = threading.Thread(target=_play, args=(tree, history, live, speed, playing), name="replay", daemon=True)
        with view:
            thread.start()
            try:
                _follow(facts, view, watch, jobs, playing, children)
                playing.stop.set()
                thread.join()
                _settle(facts, view, watch, jobs, playing, children)
            except KeyboardInterrupt:
                facts.is_interrupted = True
            finally:
                playing.stop.set()
                thread.join(timeout=10)
        _check(facts, tree, fleet, playing)
        view.summary(facts)
        if json:
            print(msgspec.json.encode(facts.to_plain()).decode(), flush=True)
        if stay and not facts.is_interrupted:
            _stay(view, tree, live, playing.sent.newest_ms, watch, jobs, facts, children)
    if not facts.is_good:
        raise NarrowsError(f"the demo did not show everything; its logs are in {folder}")


def _clear(folder: Path) -> None:
    """An empty folder, if it was ours before."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise BadInput(f"--folder {folder} holds something that is not a demo's; choose another")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _read_fleet() -> tuple[Table, Table, Fleet]:
    """The quiet part, the rest, and what was done to the servers."""
    shipped = files("pipeline.cli").joinpath("fleet")
    fleet = msgspec.json.decode(shipped.joinpath("faults.json").read_bytes(), type=Fleet)
    with as_file(shipped.joinpath("readings.parquet")) as path:
        table = read_table(path, FileOptions(device_column="device"))
    quiet = table.ts_ms < fleet.begin_ms + int(fleet.quiet_s * 1000)
    return table.take(quiet), table.take(~quiet), fleet


def _set_up(
    stack: ExitStack, folder: Path, history: Table, fleet: Fleet, say: Any
) -> tuple[LocalKafka, LocalRedis, Path]:
    """Servers and the baseline, at the same time."""
    say("starting Kafka and Redis, training the baseline")
    with ThreadPoolExecutor(3) as pool:
        kafka = pool.submit(LocalKafka(folder / "kafka", say=say).__enter__)
        redis = pool.submit(LocalRedis(folder / "redis").__enter__)
        bundle = pool.submit(_train_baseline, folder, history, fleet)
    # Whatever did start is stopped at the end, also where another did not.
    for server in (kafka, redis):
        if server.exception() is None:
            stack.push(server.result().__exit__)
    return kafka.result(), redis.result(), bundle.result()


def _train_baseline(folder: Path, history: Table, fleet: Fleet) -> Path:
    """`narrows train` on the beginning of the quiet part: VAR, without torch."""
    import pyarrow as pa
    import pyarrow.parquet

    first_ms = fleet.begin_ms + int(fleet.quiet_s * 1000 * BASELINE_SHARE)
    history = history.take(history.ts_ms < first_ms)
    columns: dict[str, Any] = {
        "device": pa.array([history.devices[place] for place in history.device.tolist()]).dictionary_encode(),
        "ts": pa.array(history.ts_ms, pa.timestamp("ms")),
    }
    columns |= {name: pa.array(history.values[:, place]) for place, name in enumerate(history.channels)}
    pa.parquet.write_table(pa.table(columns), folder / "history.parquet")
    (folder / "contract.yaml").write_bytes(files("pipeline.cli").joinpath("fleet/contract.yaml").read_bytes())
    bundle = folder / "baseline.bundle"
    command = [
        *_NARROWS, "train", str(folder / "history.parquet"), "--device-column", "device", "--model", "var",
        "--contract", str(folder / "contract.yaml"), "--out", str(bundle), "--no-report",
    ]
    with (folder / "train.log").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code:
        lines = (folder / "train.log").read_text(errors="replace").strip().splitlines()
        raise NarrowsError(f"the baseline could not be trained: {lines[-1] if lines else code}")
    return bundle


_NARROWS = (sys.executable, "-m", "pipeline.cli.main")


def _configure(folder: Path, kafka: LocalKafka, redis: LocalRedis, bundle: Path, after_rows: int) -> Config:
    """The file that worker, trainer and page read: the same as for anybody's own topic."""
    tree = {
        "kafka": {"bootstrap": kafka.bootstrap, "group": "narrows-demo"},
        "redis": {"url": redis.url},
        "registry": {"path": "registry"},
        "worker": {"metrics_port": free_port()},
        "streams": {STREAM: {
            "topic": TOPIC, "contract": "contract.yaml", "bundle": bundle.name,
            "outputs": {"scores": True},
            "retrain": {"after_rows": after_rows, "family": "dense", "cooldown_s": 3600.0},
        }},
    }
    path = folder / "narrows.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_config(path, {})


def _start(stack: ExitStack, folder: Path, tree: Config) -> list[Server]:
    environ = {name: value for name, value in os.environ.items() if not (name.startswith("NARROWS_") and "__" in name)}
    config = ("--config", str(folder / "narrows.yaml"))
    children = [
        Server("worker", [*_NARROWS, "worker", *config], folder / "worker.log", environ),
        Server("trainer", [*_NARROWS, "trainer", *config], folder / "trainer.log", environ),
    ]
    for child in children:
        child.start()
        stack.callback(child.stop)
    return children


@contextmanager
def _served(tree: Config, port: int) -> Iterator[tuple[Watch, str]]:
    """The watch and the page in a thread of their own."""
    import asyncio

    watch = open_watch(tree)
    listener = listen("127.0.0.1", port)
    loop = asyncio.new_event_loop()
    task = loop.create_task(serve(watch, listener))

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="page", daemon=True)
    thread.start()
    try:
        yield watch, f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=5)


def _wait_ready(tree: Config, children: list[Server]) -> None:
    """Until the worker says that it has its partitions. Raises Unreachable with the log's last words."""
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        _alive(children)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{tree.worker.metrics_port}/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise Unreachable(f"the worker was not ready within {READY_S} s: {children[0].last_words()}")


def _alive(children: list[Server]) -> None:
    for child in children:
        if not child.running:
            raise NarrowsError(f"the {child.name} ended: {child.last_words()}")


def _play(
    tree: Config, history: Table, live: Table, speed: float, playing: Playing, after_ms: int | None = None
) -> None:
    """Sends the history at once, then the rest at its pace until told to stop, each loop behind the last.

    after_ms : newest time sent before: then without the history, on from there.
    """
    stream, settings = tree.streams[STREAM], tree.kafka.client_settings()
    if after_ms is None:
        lasts_ms = int(live.ts_ms.max() - live.ts_ms.min())
        playing.shift_ms = round(time.time() * 1000 + lasts_ms / speed) - int(live.ts_ms.max())
        parts = [(history, Pace(speedup=float("inf"))), (live, Pace(speedup=speed, loops=LOOPS))]
    else:
        playing.shift_ms = max(round(time.time() * 1000), after_ms + STEP_MS) - int(live.ts_ms.min())
        parts = [(live, Pace(speedup=speed, loops=0))]
    try:
        for table, pace in parts:
            before = playing.sent
            shifted = replace(table, ts_ms=table.ts_ms + playing.shift_ms)
            for sent in publish(settings, stream.topic, stream.format, shifted, pace):
                playing.sent = Sent(
                    before.rows + sent.rows, before.records + sent.records, before.bytes + sent.bytes, sent.newest_ms
                )
                playing.has_played_once |= table is live and sent.rows >= len(live)
                if playing.stop.is_set():
                    return
    except BaseException as error:
        playing.error = error


def _follow(
    facts: Facts, view: View, watch: Watch, jobs: JobQueue, playing: Playing, children: list[Server]
) -> None:
    """Shows what happens until the recording has been played and the new model has scored for a while."""
    begin = time.monotonic()
    swapped_s: float | None = None
    while playing.sent.rows < facts.rows_before + LOOPS * facts.rows_a_loop:
        _alive(children)
        if playing.error is not None:
            raise playing.error
        snapshot = watch.snapshot()
        facts.take(snapshot, time.monotonic() - begin, playing.sent.rows, playing.sent.bytes, _job(jobs))
        view.show(facts, snapshot)
        if facts.swaps and swapped_s is None:
            swapped_s = time.monotonic()
        done = swapped_s is not None and time.monotonic() - swapped_s > AFTER_SWAP_S
        ended = facts.job is not None and facts.job.state in ("finished", "failed") and facts.job.outcome != "promoted"
        if playing.has_played_once and (done or ended):
            return
        time.sleep(0.25)


def _settle(
    facts: Facts, view: View, watch: Watch, jobs: JobQueue, playing: Playing, children: list[Server]
) -> None:
    """Until everything sent has been read and its outputs seen."""
    deadline = time.monotonic() + SETTLE_S
    begin = time.monotonic() - facts.streamed_s
    calm = 0
    while time.monotonic() < deadline and calm < 8:
        _alive(children)
        snapshot = watch.snapshot()
        facts.take(snapshot, time.monotonic() - begin, playing.sent.rows, playing.sent.bytes, _job(jobs))
        view.show(facts, snapshot)
        calm = calm + 1 if facts.lag == 0 else 0
        time.sleep(0.25)


def _job(jobs: JobQueue) -> Job | None:
    """The newest retraining job, as far as Redis tells."""
    try:
        known = sorted(jobs.jobs(STREAM), key=lambda job: job.requested_ms)
    except NarrowsError:
        return None
    if not known:
        return None
    newest = known[-1]
    return Job(newest.state, newest.stage, newest.progress, newest.outcome, newest.error, newest.result or {})


def _check(facts: Facts, tree: Config, fleet: Fleet, playing: Playing) -> None:
    """What the topics hold, against what was sent: every row scored once, each documented fault found or not."""
    stream: Stream = tree.streams[STREAM]
    settings = tree.kafka.client_settings()
    seen = SeenOnce()
    contents: dict[str, tuple[float | None, str]] = {}
    digests: dict[str, int] = {}
    for _, record in read_topic(settings, tree.kafka.topic("scores")):
        score = read_score(record.value or b"")
        if contents.setdefault(score.id, (score.score, score.digest)) != (score.score, score.digest):
            facts.scores_twice += 1
        if seen.is_new(score.id):
            digests[score.digest] = digests.get(score.digest, 0) + 1
    facts.scores = sum(digests.values())
    facts.scores_expected = playing.sent.rows - facts.devices * (stream.contract.window - 1)
    facts.scored_by = digests
    for fault in fleet.faults if playing.has_played_once else ():
        begin_ms = fleet.begin_ms + round(fault.begin_s * 1000) + playing.shift_ms
        end_ms = fleet.begin_ms + round(fault.end_s * 1000) + playing.shift_ms
        facts.faults.append((fault.device, fault.kind, facts.has_episode(fault.device, begin_ms, end_ms + LATE_MS)))


def _stay(
    view: View, tree: Config, live: Table, newest_ms: int, watch: Watch, jobs: JobQueue, facts: Facts,
    children: list[Server],
) -> None:
    """In real time from now on, until interrupted."""
    playing = Playing()
    thread = threading.Thread(target=_play, args=(tree, live, live, 1.0, playing, newest_ms), daemon=True)
    begin = time.monotonic() - facts.streamed_s
    rows, size = facts.rows, facts.bytes_sent
    with view:
        thread.start()
        try:
            while playing.error is None:
                _alive(children)
                snapshot = watch.snapshot()
                facts.take(
                    snapshot, time.monotonic() - begin, rows + playing.sent.rows, size + playing.sent.bytes, _job(jobs)
                )
                view.show(facts, snapshot)
                time.sleep(0.25)
        except KeyboardInterrupt:
            pass
        finally:
            playing.stop.set()
            thread.join(timeout=10)
    if playing.error is not None:
        raise playing.error

