"""The composition root: the only place that builds the worker's objects and touches Faust's decorators."""

import asyncio
import contextlib
import gc
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.worker import Worker as FaustWorker
from yarl import URL

from pipeline import codec, formats, topics
from pipeline.agent import Agent, Held
from pipeline.agent import Part as Batch
from pipeline.config import Config, parse_time_ms
from pipeline.core.maintenance import Plans
from pipeline.engine import overrides
from pipeline.engine.deliver import deliver
from pipeline.engine.state_topic import Name, State, read_entries
from pipeline.engine.transport import TP, Begin, Keeper, Settings, Tables, Transport, install_fetch
from pipeline.engine.watchdog import Pulse, Seen, Watchdog
from pipeline.errors import BadInput, NarrowsError, Stalled, StopWorker
from pipeline.line import Line, OutputTopics
from pipeline.metrics import Metrics, serve
from pipeline.registry.store import Registry
from pipeline.retraining.asking import Asker, newest_ranges
from pipeline.retraining.queue import JobQueue, connect
from pipeline.retraining.request import RetrainRequest
from pipeline.retraining.triggers import Counters, due
from pipeline.scoring.models import ModelShelf
from pipeline.scoring.stream import BLANK, UNSCORED
from pipeline.sinks import Record

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0       # champion pointers, idle commits, triggers, watchdog
WRONG_KEYS_TOLD = 20     # devices of a stream that the log names; narrows_wrong_keys_total counts them all
MAX_POLL_S = 1e6         # out of reach: aiokafka leaves the group for ever when all partitions are paused longer
PARTITION_BYTES = 4 << 20   # of one fetch: half of what its answer holds
PRODUCER_BATCH_BYTES = 1 << 20
PRODUCER_REQUEST_BYTES = 32 << 20
GC_THRESHOLDS = (100_000, 20, 100)   # the default walks the fetched records again and again


class Worker:
    """One streaming worker, from a configuration.

    fault : why it ended, None where it was told to.
    """

    def __init__(self, config: Config) -> None:
        if not config.streams:
            raise BadInput("no stream is configured: add one under `streams` (`narrows config init` shows how)")
        self.config = config
        self.metrics = Metrics()
        self.fault: BaseException | None = None
        kafka = config.kafka
        self.shelf = ModelShelf(
            Registry(config.registry.path), {name: stream.contract for name, stream in config.streams.items()},
            {name: Path(stream.bundle) for name, stream in config.streams.items() if stream.bundle is not None},
            config.worker.provider, lambda stream: self.metrics.refused_bundles.labels(stream).inc(),
        )
        first_of_topic = {stream.topic: name for name, stream in reversed(config.streams.items())}
        self.lines = [
            Line(name, stream.topic, stream.contract, stream.format, stream.match, OutputTopics(
                kafka.topic("scores") if stream.outputs.scores else None,
                kafka.topic("anomalies") if stream.outputs.anomalies else None,
                kafka.topic("blocks") if stream.outputs.blocks else None,
                kafka.topic("features") if stream.outputs.features else None,
                kafka.topic("dead-letters"), kafka.topic("codecs"),
            ), takes_nameless=first_of_topic[stream.topic] == name, rules=stream.blocks,
                max_devices=config.worker.max_devices, max_replay=config.worker.max_replay,
                silence_ms=stream.silence_ms)
            for name, stream in config.streams.items()
        ]
        self.app = _faust_app(config)
        self.plans = Plans()
        self.agent = Agent(
            self.lines, self.shelf, self, config.worker.commit_interval_s, self._observe, config.worker.idle_after_s,
            self.plans,
        )
        self.app.narrows = _settings(config, self.agent)
        self._watchdog = Watchdog(config.worker.stall_s)
        self._pulse = Pulse(config.worker.stall_s, self._end)
        self._rows_since: dict[str, int] = dict.fromkeys(config.streams, 0)
        self._wrong_keys: dict[str, int] = {}
        self._asked_ms: dict[str, int] = {}
        self._asker: Asker | None = None
        self._digests: dict[str, str] = {}
        for topic in sorted({line.topic for line in self.lines}):
            self._add_agent(topic)
        self.app.task(self._look)
        self.app.task(self._follow)
        self.app.task(self._watch)
        self.app.task(self._serve)

    # ---------------------------------------------------------------- Faust

    def _add_agent(self, topic: str) -> None:
        source = self.app.topic(topic, value_type=None, value_serializer=None, key_type=bytes, key_serializer="raw")

        async def flow(stream: Any) -> None:
            async for event in stream.events():
                await self._guard(self.agent.take(event.message.value))

        self.app.agent(source, name=f"narrows.{topic}")(flow)

    async def _guard(self, work: Any) -> Any:
        """Any error ends the worker, and the first one is told."""
        try:
            return await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self.fault is None:
                self.fault = error
            log.error("%s", error, exc_info=not isinstance(error, NarrowsError))
            await self.app.crash(error)
            raise

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what ended it otherwise."""
        self.check()
        if any(_wants_retraining(stream) for stream in self.config.streams.values()):
            self._asker = Asker(JobQueue(connect(self.config.redis.url.reveal(), self.config.redis.auth)))
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()
        worker = FaustWorker(
            self.app, loglevel="WARN", override_logging=False, redirect_stdouts=False, quiet=True,
            loop=asyncio.new_event_loop(),
        )
        worker.spinner = None   # it writes escape codes wherever the output goes
        try:
            worker.execute_from_commandline()
        except SystemExit as ended:
            if ended.code and self.fault is None:
                self.fault = StopWorker(f"the worker ended with exit code {ended.code}; the log says why")
        finally:
            self.agent.close()
        if isinstance(self.fault, NarrowsError):
            raise self.fault
        if self.fault is not None:
            raise StopWorker(f"the worker ended: {self.fault!r}") from self.fault

    def check(self) -> None:
        """Everything that can be found wrong before the first record. Raises what to do."""
        overrides.check()
        formats.warm_up()   # compiled code, cached on disk: the first time on a machine takes long
        self.shelf.open()
        if any(stream.outputs.blocks for stream in self.config.streams.values()):
            codec.warm_up()
        for line in self.lines:
            refused = line.refuses(self.shelf.wanted(line.name))
            if refused:
                raise BadInput(f"streams.{line.name}.blocks asks for latents, but {refused}; or set kind: bounded")
        check_broker(self.config)
        topics.read_plans(self.config.kafka.client_settings(), self.config.kafka.topic("maintenance"), self.plans)
        self.metrics.runtime.info({
            "provider": self.shelf.wanted(self.lines[0].name).session.provider, "streams": str(len(self.lines)),
        })

    # ---------------------------------------------------------------- outlets of the agent

    async def deliver(self, outputs: Sequence[Any]) -> None:
        """Written and acknowledged by all replicas."""
        if outputs:
            producer = await self.app.maybe_start_producer()
            await deliver(producer._ensure_producer(), outputs)

    async def commit(self, commits: Mapping[TP, tuple[int, str]]) -> bool:
        """True once the broker has acknowledged."""
        done: bool = await self.app.consumer.commit_now(commits)
        if done:
            self.metrics.commits.inc()
        return done

    async def read_state(self, tp: TP, epoch: str, next_offset: int) -> tuple[dict[Name, State], list[bytes]]:
        """Verdict states as of a commit, and every key of this partition; see `engine.state_topic`."""
        name = self.config.kafka.topic("state")
        settings = self.config.kafka.client_settings()

        def read() -> tuple[dict[Name, State], list[bytes]]:
            newest = topics.newest_by_key(settings, name, tp.partition)
            return read_entries(newest.items(), tp.topic, tp.partition, epoch, next_offset)

        return await asyncio.to_thread(read)

    def state_record(self, partition: int, key: bytes, value: bytes | None) -> Record:
        return Record(self.config.kafka.topic("state"), partition, key, value, [])

    def assigned(self) -> set[TP]:
        return {TP(*tp) for tp in self.app.consumer.assignment()}

    def begun(self, tp: TP) -> Begin | None:
        begin: Begin | None = self.app.consumer.begun.get(tp)
        return begin

    # ---------------------------------------------------------------- tasks beside the flow

    async def _look(self) -> None:
        """Once a second: new champions, idle commits, triggers."""
        while not self.app.should_stop:
            await self.app.sleep(LOOK_EVERY_S)
            for line in self.lines:
                await self._guard(asyncio.to_thread(self.shelf.look, line.name))
            self.shelf.keep({digest for one in self.agent.held.values() for digest in one.digests.values()})
            await self._guard(self.agent.tick())
            self._ask()
            self._show(list(self.agent.held.values()))

    async def _follow(self) -> None:
        """Windows of maintenance, as people declare them."""
        settings, name = self.config.kafka.client_settings(), self.config.kafka.topic("maintenance")

        async def read() -> None:
            async with contextlib.aclosing(topics.follow_plans(settings, name, self.plans, LOOK_EVERY_S)) as looks:
                async for _ in looks:
                    if self.app.should_stop:
                        return

        await self._guard(read())

    async def _watch(self) -> None:
        """Once a second, whatever else waits: whether the worker still gets on."""
        self._pulse.start()
        try:
            while not self.app.should_stop:
                self._pulse.beat()
                held = list(self.agent.held.values())
                wrong = self._watchdog.look(Seen(
                    time.monotonic(), sum(one.position for one in held), sum(one.lag for one in held), len(held),
                    self.app.rebalancing,
                ))
                if wrong is not None:
                    self._end(wrong)
                await self.app.sleep(LOOK_EVERY_S)
        finally:
            self._pulse.stop()

    def _end(self, why: Stalled) -> None:
        """At once: what stalls would stall an orderly end too."""
        log.error("%s", why)
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(why.exit_code)

    async def _serve(self) -> None:
        """/metrics, /live and /ready."""
        worker = self.config.worker
        def live() -> str | None:
            return None if self.fault is None else str(self.fault)

        def ready() -> str | None:
            return "no partition is assigned yet" if not self.assigned() else live()

        with contextlib.suppress(asyncio.CancelledError):
            async with serve(self.metrics, worker.metrics_host, worker.metrics_port, live, ready) as port:
                log.info("metrics on http://%s:%d/metrics", worker.metrics_host, port)
                await self.app.wait_for_stopped()

    def _ask(self) -> None:
        """Ask for a new model where a trigger says so."""
        if self._asker is None:
            return
        now_ms = round(time.time() * 1000)
        for line in self.lines:
            stream = self.config.streams[line.name]
            model = self.shelf.wanted(line.name)
            if self._digests.setdefault(line.name, model.digest) != model.digest:
                self._digests[line.name] = model.digest
                self._rows_since[line.name] = 0
            times = [line.stream.rows.stream_time.get(tp.partition) for tp in self.agent.held if tp.topic == line.topic]
            counters = Counters(
                rows=self._rows_since[line.name], data_end_ms=self.shelf.data_end_ms.get(model.digest, 0),
                stream_time_ms=max((at for at in times if at is not None), default=None),
                asked_ms=self._asked_ms.get(line.name),
            )
            reason = due(stream.retrain, counters, now_ms)
            if reason is not None:
                self._asked_ms[line.name] = now_ms
                self._asker.ask(line.name, self._request(line, model.digest, reason, now_ms), stream.retrain.cooldown_s)

    def _request(self, line: Line, champion: str, reason: str, now_ms: int) -> Any:
        settings, most = self.config.kafka.client_settings(), self.config.streams[line.name].retrain.max_rows

        def make() -> RetrainRequest:
            return RetrainRequest(
                stream=line.name, topic=line.topic, ranges=newest_ranges(settings, line.topic, most),
                contract_hash=line.contract.hash, champion=None if champion == BLANK else champion, reason=reason,
                requested_ms=now_ms,
            )

        return make

    # ---------------------------------------------------------------- metrics

    def _observe(self, parts: list[Batch], outputs: list[Record], seconds: float) -> None:
        """Once a batch."""
        metrics = self.metrics
        metrics.batch_seconds.observe(seconds)
        sizes: dict[str, list[int]] = {}
        for output in outputs:
            count = sizes.setdefault(output.topic, [0, 0])
            count[0] += 1
            count[1] += len(output.value or b"")
        for topic, (count_, size) in sizes.items():
            short = topic.rpartition("narrows.")[2]
            metrics.outputs.labels(short).inc(count_)
            metrics.output_bytes.labels(short).inc(size)
        for line in self.lines:
            if not line.counts:
                continue
            counts, name = line.counts, line.name
            self._rows_since[name] += sum(counts[one] for one in ("scored", *UNSCORED))
            metrics.records.labels(name).inc(counts["records"])
            metrics.record_bytes.labels(name).inc(counts["record_bytes"])
            metrics.rows_scored.labels(name).inc(counts["scored"])
            for reason in UNSCORED:
                metrics.rows_unscored.labels(name, reason).inc(counts[reason])
            metrics.late_rows.labels(name).inc(counts["late"])
            metrics.duplicates.labels(name).inc(counts["duplicates"])
            metrics.muted_rows.labels(name).inc(counts["muted"])
            metrics.block_rows.labels(name).inc(counts["block_rows"])
            for kind, blocks in line.classes.items():
                metrics.block_class_rows.labels(name, kind).inc(sum(one.rows for one in blocks))
                metrics.block_class_bytes.labels(name, kind).inc(sum(one.bytes for one in blocks))
                metrics.block_error_rows.labels(name, kind).inc(sum(one.mean * one.rows for one in blocks))
                if blocks:
                    metrics.block_largest_error.labels(name, kind).set(max(one.largest for one in blocks))
                blocks.clear()
            metrics.evicted_devices.labels(name).inc(counts["evicted"])
            for state in ("opened", "updated", "closed"):
                metrics.episodes.labels(name, state).inc(counts[state])
            metrics.unknown_fields.labels(name).inc(counts["unknown_fields"])
            for reason, many in line.reasons.items():
                metrics.dead_letters.labels(name, reason).inc(many)
            self._tell_wrong_keys(line)
            counts.clear()
            line.reasons.clear()

    def _tell_wrong_keys(self, line: Line) -> None:
        """A line in the log for each of the first devices, the others as a number."""
        before = self._wrong_keys.get(line.name, 0)
        self._wrong_keys[line.name] = before + len(line.wrong_keys)
        self.metrics.wrong_keys.labels(line.name).inc(len(line.wrong_keys))
        for device, one, other in line.wrong_keys[: max(0, WRONG_KEYS_TOLD - before)]:
            log.warning(
                "stream %s: device %s is in partitions %d and %d of %s, so it has two states: give its records one "
                "key; `narrows topics rekey` copies those that are there", line.name, device, one, other, line.topic,
            )
        line.wrong_keys.clear()

    def _show(self, held: list[Held]) -> None:
        """Once a second."""
        metrics = self.metrics
        metrics.partitions.set(len(held))
        for line in self.lines:
            metrics.devices.labels(line.name).set(line.stream.rows.devices)
            metrics.open_episodes.labels(line.name).set(line.stream.open_episodes)
            metrics.model.labels(line.name).info({"digest": self.shelf.wanted(line.name).digest})
            for one in held:
                if one.tp.topic == line.topic:
                    metrics.lag.labels(line.name, str(one.tp.partition)).set(one.lag)
                    metrics.stream_time.labels(line.name, str(one.tp.partition)).set(one.stream_time / 1000)


def _settings(config: Config, keeper: Keeper) -> Settings:
    start = config.kafka.start
    at: str | int = start if start in ("earliest", "latest") else parse_time_ms("kafka.start", start)
    worker = config.worker
    return Settings(keeper, at, worker.max_poll_records, worker.fetch_min_bytes, worker.fetch_max_wait_ms)


def check_broker(config: Config) -> dict[str, topics.Facts]:
    """Rights and topics that a worker needs; the topics' facts. Raises what is missing where, and what to do."""
    settings, prefix = config.kafka.client_settings(), config.kafka.topic_prefix
    outputs = [stream.outputs for stream in config.streams.values()]
    optional = {
        name for one in outputs for name in ("scores", "anomalies", "blocks", "features") if getattr(one, name)
    }
    written = [topics.TOPICS[name] for name in sorted(optional | {"dead-letters", "state", "codecs"})]
    inputs = sorted({stream.topic for stream in config.streams.values()})
    topics.check_rights(
        settings, config.kafka.group, [*inputs, config.kafka.topic("state"), config.kafka.topic("maintenance")],
        [topic.full_name(prefix) for topic in written],
    )
    return topics.check(settings, inputs, prefix, [*written, topics.TOPICS["maintenance"]])


def _faust_app(config: Config) -> Any:
    """Faust with our transport; every setting that differs from its default has its reason in docs/engine.md."""
    kafka = config.kafka
    install_fetch()
    url = [URL(f"kafka://{pair.strip()}") for pair in kafka.bootstrap.split(",") if pair.strip()]
    app = faust.App(
        kafka.group, broker=url, broker_credentials=_credentials(config), value_serializer="raw",
        topic_disable_leader=True, topic_allow_declare=False, store="memory://", web_enabled=False,
        datadir=str(Path(tempfile.gettempdir()) / f"narrows-{os.getpid()}"), stream_wait_empty=False,
        stream_buffer_maxsize=2, consumer_auto_offset_reset="earliest", consumer_max_fetch_size=PARTITION_BYTES,
        consumer_group_instance_id=kafka.static_member or None, broker_commit_interval=3600.0,
        broker_session_timeout=config.worker.session_timeout_s, broker_heartbeat_interval=min(
            3.0, config.worker.session_timeout_s / 3
        ),
        broker_request_timeout=40.0, broker_rebalance_timeout=30.0, broker_max_poll_interval=MAX_POLL_S,
        agent_supervisor="mode.CrashingSupervisor", TableManager=Tables,
        producer_linger=0, producer_max_batch_size=PRODUCER_BATCH_BYTES,
        producer_max_request_size=PRODUCER_REQUEST_BYTES, producer_compression_type=None,
    )
    app.transport = Transport(url, app)
    app.producer_transport = app.transport
    return app


def _credentials(config: Config) -> Any:
    kafka = config.kafka
    context = kafka.ssl_context()
    if kafka.sasl_mechanism is not None:
        return SASLCredentials(
            username=kafka.username, password=kafka.sasl_password, mechanism=kafka.sasl_mechanism, ssl_context=context,
        )
    return SSLCredentials(context) if context is not None else None


def _wants_retraining(stream: Any) -> bool:
    return stream.retrain.after_rows is not None or stream.retrain.after_s is not None

