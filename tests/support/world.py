"""A topic full of records, workers as child processes, and the check of what they wrote against the oracle."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline import codec, topics
from pipeline.core.contract import Channel, Contract
from pipeline.core.ids import output_id
from pipeline.registry.bundle import Bundle
from pipeline.registry.store import Registry
from pipeline.scoring.stream import Model
from pipeline.sinks import SeenOnce, read_anomaly, read_block_label, read_dead_letter, read_feature, read_score
from tests.support.logs import make_log
from tests.support.models import model_of, small_contract, write_small_bundle
from tests.support.oracle import Expected, Record, expected

POLL_S = 0.2


def until(claim: Callable[[], bool], limit_s: float, what: str) -> float:
    """Poll until the claim holds; the seconds that it took. Raises AssertionError at the deadline."""
    start = time.monotonic()
    while not claim():
        if time.monotonic() - start > limit_s:
            raise AssertionError(f"{what}: not within {limit_s} s")
        time.sleep(POLL_S)
    return time.monotonic() - start


@dataclass
class Found:
    """What the output topics hold, by identity; `conflicts`: ids with two contents, `repeated`: written twice."""

    outputs: Expected = field(default_factory=Expected)
    digest_at: dict[int, str] = field(default_factory=dict)
    features: dict[tuple[bool, int], bytes] = field(default_factory=dict)
    dead: dict[int, tuple[str, bytes | None]] = field(default_factory=dict)
    conflicts: int = 0
    repeated: int = 0
    passed_twice: int = 0    # what the shipped de-duplicating reader would pass on a second time
    seen: SeenOnce = field(default_factory=SeenOnce)
    known: set[str] = field(default_factory=set)
    provisional: list[tuple[str, str, Any]] = field(default_factory=list)   # (kind, id, content)

    def put(self, into: dict[Any, Any], key: Any, value: Any, name: str) -> None:
        if self.seen.is_new(name):
            self.passed_twice += name in self.known
            self.known.add(name)
        if key in into:
            self.repeated += 1
            self.conflicts += into[key] != value
        into[key] = value


class World:
    """One stream with its topics, bundles and workers."""

    def __init__(
        self, folder: Path, bootstrap: str, contract: Contract, bundles: list[Bundle], partitions: int = 2,
        worker: dict[str, Any] | None = None, redis: str | None = None, stream: dict[str, Any] | None = None,
        slow_ms: int = 0, replicas: int = -1, has_champion: bool = True,
    ) -> None:
        self.folder, self.bootstrap, self.contract = folder, bootstrap, contract
        self.partitions = partitions
        folder.mkdir(parents=True, exist_ok=True)
        name = f"t{os.getpid()}-{time.monotonic_ns() % 10**10}"
        self.topic, self.group, self.prefix = f"{name}-readings", f"{name}-group", f"{name}."
        self.registry = Registry(folder / "registry")
        self.models: dict[str, Model] = {}
        self.bundles = bundles
        for bundle in bundles:
            self.models[bundle.digest] = model_of(bundle)
            assert bundle.folder is not None
            self.registry.publish("pump", bundle.folder)
        if has_champion:
            self.promote(0)
        self.config: dict[str, Any] = {
            "kafka": {"bootstrap": bootstrap, "group": self.group, "topic_prefix": self.prefix},
            "registry": {"path": str(folder / "registry")},
            "worker": {"metrics_port": 0, "commit_interval_s": 0.3, "session_timeout_s": 6.0, **(worker or {})},
            "streams": {"pump": {
                "topic": self.topic, "contract": json.loads(msgspec.json.encode(contract)),
                "outputs": {"scores": True}, **(stream or {}),
            }},
        }
        if redis is not None:
            self.config["redis"] = {"url": redis}
        self.path = folder / "narrows.yaml"
        self.path.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        topics.create(bootstrap, [self.topic], self.prefix, partitions=partitions, replicas=replicas)
        self.logs: list[list[Record]] = [[] for _ in range(partitions)]
        self.workers: list[subprocess.Popen[bytes]] = []
        self.slow_ms = slow_ms

    def promote(self, number: int) -> None:
        """Make a bundle the champion."""
        self.registry.promote("pump", self.bundles[number].digest, now_ms=round(time.time() * 1000))

    # ---------------------------------------------------------------- input

    def produce(self, logs: list[list[Record]]) -> None:
        """Write the records (offsets are given anew) and remember them as the oracle needs them."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, acks="all", batch_size=1 << 18, linger_ms=20)
        for partition, log in enumerate(logs):
            for record in log:
                producer.send(
                    self.topic, self._raw(record), key=record.device.encode(), partition=partition,
                    timestamp_ms=record.time,
                )
                self.logs[partition].append(replace(record, offset=len(self.logs[partition])))
        producer.flush()
        producer.close()

    def _raw(self, record: Record) -> bytes | None:
        """A record's value as it is written."""
        if record.values is None:
            return record.raw
        numbers = {
            name: None if number != number else number
            for name, number in zip(self.contract.names, record.values.astype(float).tolist(), strict=True)
        }
        return json.dumps({"device": record.device, "ts": record.ts, "values": numbers}).encode()

    def give_up(self, partition: int, offset: int) -> None:
        """From now on the oracle knows this record as one that nobody could read and live."""
        record = self.logs[partition][offset]
        self.logs[partition][offset] = replace(record, values=None, raw=self._raw(record), reason="crashed")

    # ---------------------------------------------------------------- workers

    def start(self, member: str | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """One more worker."""
        command = [sys.executable, "-m", "tests.support.slow_worker", str(self.slow_ms), "--config", str(self.path)]
        if member is not None:
            command += ["--member", f"{self.group}-{member}"]
        log = (self.folder / f"worker{len(self.workers)}.log").open("wb")
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environ, cwd=Path(__file__).parents[2]
        )
        log.close()
        self.workers.append(child)
        return child

    def begins(self, child: subprocess.Popen[bytes], limit_s: float = 90) -> None:
        """Until this worker has begun a partition once more than before."""
        log = self.folder / f"worker{self.workers.index(child)}.log"
        before = log.read_bytes().count(b"begin ")
        until(lambda: log.read_bytes().count(b"begin ") > before, limit_s, f"a partition begun ({self.tail()})")

    def stop(self, child: subprocess.Popen[bytes], limit_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        child.send_signal(signal.SIGTERM)
        return child.wait(limit_s)

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()

    def close(self) -> None:
        for child in self.workers:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                child.wait()

    def replayed(self) -> int:
        """Most records behind its commit that one beginning of a partition read again."""
        begun = re.compile(rb"begin \S+ at (\d+), replay from (\d+)")
        places = [found for log in self.folder.glob("worker*.log") for found in begun.findall(log.read_bytes())]
        return max((int(at) - int(mark) for at, mark in places), default=0)

    def configure(self, name: str, **settings: str) -> None:
        """Set a topic's configuration; an empty value takes a setting away. Underscores stand for dots."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        configs = {
            key.replace("_", "."): ("SET", value) if value else ("DELETE", None) for key, value in settings.items()
        }
        try:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])
        finally:
            admin.close()

    def forget(self, partition: int, before: int) -> None:
        """The log's beginning, as retention takes it away."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.delete_records({TopicPartition(self.topic, partition): before})
        finally:
            admin.close()

    def committed(self) -> dict[int, int]:
        """Committed offset of each partition, 0 where there is none."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            found = admin.list_group_offsets(self.group)
        except Exception:   # no such group yet
            return {}
        finally:
            admin.close()
        offsets = found.get(self.group, found) if isinstance(found, dict) else found
        return {tp.partition: at.offset for tp, at in offsets.items() if isinstance(tp, TopicPartition)}

    def is_done(self) -> bool:
        committed = self.committed()
        return all(committed.get(p, 0) >= len(log) for p, log in enumerate(self.logs))

    def wait(self, limit_s: float = 120) -> float:
        """Until everything is committed; fails at once when no worker lives."""
        def claim() -> bool:
            alive = any(child.poll() is None for child in self.workers)
            assert alive, f"every worker has ended: {self.tail()}"
            return self.is_done()

        return until(claim, limit_s, f"everything committed ({self.tail()})")

    def tail(self) -> str:
        """The end of the last worker's log."""
        logs = sorted(self.folder.glob("worker*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text(errors="replace")[-1500:] if logs else ""

    # ---------------------------------------------------------------- the check

    def read(self) -> list[Found]:
        """Everything that was written, by input partition."""
        found = [Found() for _ in range(self.partitions)]

        def records(name: str) -> Iterator[tuple[Found, int, topics.Record]]:
            for partition, record in topics.read_topic(self.bootstrap, f"{self.prefix}narrows.{name}"):
                yield found[partition], partition, record

        for one, partition, record in records("scores"):
            score = read_score(record.value or b"")
            assert score.id == output_id(self.topic, partition, "score", score.lane, score.offset)
            number = np.nan if score.score is None else score.score
            one.put(one.outputs.scores, score.offset, (
                score.device, score.lane == "late", score.ts, np.float32(number).tobytes(), score.is_anomaly,
                score.episode_id,
            ), score.id)
            assert one.digest_at.setdefault(score.offset, score.digest) == score.digest, "two digests at one offset"
        models = codec_models(self.bootstrap, self.prefix)
        for one, _, record in records("blocks"):
            label = read_block_label(record.headers)
            rows = [codec.decode_block(data, models) for data in codec.unpack_frame(record.value or b"")]
            times = tuple(ts for row in rows for ts in row.ts_ms.tolist())  # type: ignore[union-attr]
            values = b"".join(row.values.tobytes() for row in rows)
            if not label.final:
                one.provisional.append(("block", label.id, (times, values)))
                continue
            one.put(one.outputs.blocks, label.id, (
                label.device, label.lane == "late", label.trigger, times, values, label.digest,
            ), label.id)
        for one, _, record in records("features"):
            feature = read_feature(record.value or b"")
            if not feature.final:
                one.provisional.append(("features", feature.id, None))
                continue
            one.put(one.features, feature.id, np.array(feature.latent, np.float32).tobytes(), feature.id)
        for one, _, record in records("anomalies"):
            anomaly = read_anomaly(record.value or b"")
            if not anomaly.final:
                one.provisional.append((anomaly.state, anomaly.id, anomaly.episode_id))
                continue
            one.put(one.outputs.alarms, anomaly.id, (
                anomaly.state, anomaly.device, anomaly.lane == "late", anomaly.trigger, anomaly.window_start,
                anomaly.window_end, anomaly.peak, anomaly.episode_id,
            ), anomaly.id)
        for one, _, record in records("dead-letters"):
            letter = read_dead_letter(record.headers)
            one.put(one.dead, letter.offset, (letter.reason, record.value), letter.id)
        return found

    def check_cold(self, begins: list[int]) -> dict[str, int]:
        """Scores from `begins` on, by partition, are those of devices that nobody knew before."""
        scores = 0
        for found, log, begin in zip(self.read(), self.logs, begins, strict=True):
            digests = set(found.digest_at.values())
            assert len(digests) == 1
            want = expected(log[begin:], self.contract, self.models[digests.pop()])
            same(
                {offset: score[3] for offset, score in want.scores.items()},
                {offset: score[3] for offset, score in found.outputs.scores.items() if int(offset) >= begin},
                "scores after a cold start",
            )
            scores += len(found.outputs.scores)
        return {"scores": scores}

    def check(self) -> dict[str, int]:
        """Compare with the oracle, ids and contents. Returns counts; raises AssertionError where anything differs."""
        totals: dict[str, int] = defaultdict(int)
        for partition, (found, log) in enumerate(zip(self.read(), self.logs, strict=True)):
            switches = self._switches(found)
            totals["digests"] = max(totals["digests"], len(switches))

            def model_at(offset: int, switches: list[tuple[int, str]] = switches) -> Model:
                return self.models[[digest for at, digest in switches if at <= offset][-1]]

            want = expected(log, self.contract, model_at)
            scored = {
                offset: (*score[:5], self._id(partition, "episode", score[1], score[5]) if score[5] >= 0 else None)  # type: ignore[operator]
                for offset, score in want.scores.items()
            }
            if found.conflicts:
                raise Differs(f"{found.conflicts} ids have two contents", 0, found.conflicts)
            same(scored, found.outputs.scores, "scores")
            same(
                {self._id(partition, "block", late, first): (
                    name, late, trigger, ts, self._stored(model_at(int(trigger)), ts, values, odd)   # type: ignore[call-overload]
                 ) for (late, first), (name, trigger, _, ts, values, _, odd) in want.blocks.items()},
                {key: value[:5] for key, value in found.outputs.blocks.items()}, "blocks",
            )
            same(
                {self._id(partition, "features", late, first): gist
                 for (late, first), (*_, gist, _) in want.blocks.items() if gist is not None},
                found.features, "features",
            )
            same(
                {self._id(partition, kind, late, trigger if kind == "updated" else start): (
                    kind, name, late, trigger, start_ts, end_ts, peak, self._id(partition, "episode", late, start)
                ) for (trigger, name, late, kind), (start, start_ts, end_ts, peak, _, _) in want.alarms.items()},
                found.outputs.alarms, "alarms",
            )
            same({
                record.offset: (record.reason, record.raw) for record in log if record.values is None
            }, found.dead, "dead letters")
            self._check_provisional(partition, found, want)
            totals["provisional"] += len(found.provisional)
            for name, size in (("scores", len(scored)), ("blocks", len(want.blocks)), ("alarms", len(want.alarms)),
                               ("features", len(found.features)), ("repeated", found.repeated),
                               ("passed_twice", found.passed_twice), ("dead", len(found.dead)), ("records", len(log))):
                totals[name] += size
        assert totals["scores"] > 100
        return dict(totals)

    def _check_provisional(self, partition: int, found: Found, want: Expected) -> None:
        """Each names a block or an episode of the log, and says no more than the log does."""
        blocks = {self._id(partition, "block", late, first): (ts, values)
                  for (late, first), (_, _, _, ts, values, *_) in want.blocks.items()}
        blocks |= {self._id(partition, "block", late, first): rows for (late, first), rows in want.open.items()}
        features = {self._id(partition, "features", late, first) for late, first in [*want.blocks, *want.open]}
        episodes = {content[7] for content in found.outputs.alarms.values() if content[0] == "opened"}
        for kind, name, content in found.provisional:
            if kind == "block":
                (ts, values), (all_ts, all_values) = content, blocks[name]
                assert ts == all_ts[: len(ts)]
                assert values == all_values[: len(values)], "a provisional block that the log contradicts"
            elif kind == "features":
                assert name in features
            else:
                assert (kind, content in episodes) == ("closed", True), (kind, content)

    def _stored(self, model: Model, ts_ms: Any, values: Any, in_episode: Any) -> bytes:
        """What a block gives back of these rows: within the bounds, a tenth in and 32 rows before episodes."""
        rows = np.frombuffer(values, np.float32).reshape(len(ts_ms), -1)
        known = None if model.codec is None else codec.CodecModel.from_bytes(model.codec)
        fine = [any(in_episode[i : i + 1]) or any(
            in_episode[j] and not in_episode[j - 1] for j in range(max(i, 1), min(i + 33, len(rows)))
        ) for i in range(len(rows))]
        stored = np.empty_like(rows)
        fine = fine if self.contract.bounds.any() else [False] * len(rows)
        for is_fine, group in itertools.groupby(range(len(rows)), fine.__getitem__):
            at = list(group)
            bounds = self.contract.bounds * (0.1 if is_fine else 1)
            block = codec.encode_block(np.array(ts_ms)[at], rows[at], bounds, known)
            stored[at] = codec.decode_block(block, {} if known is None else {known.id: known}).values
        off = np.abs(stored.astype(float) - rows) > self.contract.bounds
        assert not off.any(), "a value out of its bound"
        assert (np.isnan(stored) == np.isnan(rows)).all()
        return stored.tobytes()

    def _id(self, partition: int, kind: Any, late: Any, offset: Any) -> str:
        return output_id(self.topic, partition, kind, "late" if late else "main", offset)

    def _switches(self, found: Found) -> list[tuple[int, str]]:
        """(offset, digest) wherever the digest changes; scores and blocks must tell one story."""
        told = dict(found.digest_at)
        for value in found.outputs.blocks.values():
            assert told.setdefault(value[2], value[5]) == value[5], "two digests at one trigger"
        switches: list[tuple[int, str]] = []
        for offset in sorted(told):
            if not switches or switches[-1][1] != told[offset]:
                switches.append((offset, told[offset]))
        return [(0, switches[0][1]), *switches[1:]]


def small_world(
    folder: Path, bootstrap: str, seed: int, records: int = 2500, slow_ms: int = 60, replicas: int = -1,
    partitions: int = 2, **worker: Any,
) -> World:
    """Devices of all kinds on two partitions, lossless blocks, and a worker slow enough to be caught at work: it takes
    the same forty pauses to the end, however many records there are."""
    contract = small_contract()
    lossless = tuple(msgspec.structs.replace(channel, bound=0.0) for channel in contract.channels)
    contract = msgspec.structs.replace(contract, channels=lossless)
    bundles = [write_small_bundle(folder / f"b{number}", contract, number, 0.7) for number in range(3)]
    most = max(60, partitions * records // 80)
    world = World(
        folder, bootstrap, contract, bundles, partitions, slow_ms=slow_ms, replicas=replicas,
        worker={"max_poll_records": most, "commit_interval_s": 0.4, "session_timeout_s": 6.0, **worker},
    )
    world.produce([make_log(seed + number, records) for number in range(partitions)])
    return world


def fleet_world(folder: Path, bootstrap: str, rows: int | None = None) -> World:
    """The recording that the demo replays, with the baselines that are trained on its quiet part."""
    from pipeline.cli.demo import _read_fleet
    from training.make_baseline import make_baseline_bundle
    from training.prepare import prepare

    history, live, _ = _read_fleet()
    spread = np.nanmax(history.values, axis=0) - np.nanmin(history.values, axis=0)
    contract = Contract(channels=tuple(
        Channel(name=name, bound=float(1e-3 * width)) for name, width in zip(live.channels, spread, strict=True)
    ))
    prepared = prepare(contract, history.devices, history.device, history.ts_ms, history.values)
    bundles = [
        make_baseline_bundle(prepared, folder / kind, kind, refuse=False) for kind in ("pca", "var", "raw")
    ]
    world = World(
        folder / "world", bootstrap, contract, bundles, 4, slow_ms=40,
        worker={"max_poll_records": 200, "commit_interval_s": 0.5, "session_timeout_s": 6.0},
    )
    logs: list[list[Record]] = [[] for _ in range(4)]
    live = live.take(slice(0, rows))
    for place, ts, values in zip(live.device.tolist(), live.ts_ms.tolist(), live.values, strict=True):
        logs[place % 4].append(Record(0, ts, live.devices[place], ts, values))
    world.produce(logs)
    return world


def codec_models(bootstrap: str, prefix: str) -> dict[str, codec.CodecModel]:
    """Codec models by id, from `narrows.codecs`."""
    newest = topics.newest_by_key(bootstrap, f"{prefix}narrows.codecs")
    return {
        key.decode(): codec.CodecModel.from_bytes(value) for key, value in newest.items()
        if not key.startswith(b"contract/")
    }


class Differs(AssertionError):
    """What was written is not what the log causes. lost, wrong : outputs; what nothing causes is wrong."""

    def __init__(self, story: str, lost: int, wrong: int) -> None:
        super().__init__(story)
        self.lost, self.wrong = lost, wrong


def same(want: dict[Any, Any], found: dict[Any, Any], what: str) -> None:
    """Equal, with a short story where not."""
    lost, extra = want.keys() - found.keys(), found.keys() - want.keys()
    wrong = [key for key in want.keys() & found.keys() if want[key] != found[key]]
    told = [(key, want[key], found[key]) for key in wrong[:2]] or sorted(lost | extra, key=str)[:3]
    story = f"{what}: {len(lost)} lost, {len(extra)} extra, {len(wrong)} wrong of {len(want)}: {told}"[:1000]
    if lost or extra or wrong:
        raise Differs(story, len(lost), len(extra) + len(wrong))   # no `assert`: it would print whole records
