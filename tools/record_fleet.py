"""Records the fleet that `narrows demo` replays: real Redis servers under load, with faults made on purpose.

Each server has its own load (a rate that swings, a mix of reads and writes, sizes, connections). Once a second its own
counters are read (INFO) and a PING is timed. The faults are real ones of operating a cache; when and where each was
made is written beside the readings. Nothing here is simulated, so every recording differs.

    python tools/record_fleet.py --out pipeline/local/fleet --minutes 30
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from pipeline.local import LocalRedis

CHANNELS = (
    "ops", "net_in", "net_out", "clients", "memory", "keys", "hits", "expired", "cpu", "ping",
)
UNITS = ("1/s", "kB/s", "kB/s", "", "MB", "", "share", "1/s", "%", "ms")
TICK_S = 0.25
TTL_S = 45
LEAD_S = 60  # the load runs so long before the first reading, so that keys expire as fast as they are written


@dataclass
class Fault:
    """One fault of one server, seconds since the first reading."""

    server: int
    kind: str
    begin_s: float
    end_s: float

    def shown(self, names: list[str]) -> dict[str, Any]:
        return {"device": names[self.server], "kind": self.kind, "begin_s": self.begin_s, "end_s": self.end_s,
                "what": WHAT[self.kind]}


WHAT = {
    "connection leak": "a client opens two connections a second and closes none",
    "slow command": "a script that keeps the server busy for 60 ms, three times a second",
    "no expiry": "writes without a time to live, three times as large",
    "cold cache": "reads ask for keys that are not there",
    "stalled client": "the load falls to a tenth while its connections stay",
    "retry storm": "every command is sent four times",
}


@dataclass
class Server:
    """One Redis and its load."""

    client: redis.Redis
    rate: float
    swing: float
    period_s: float
    phase: float
    reads: float
    size: float
    idle: list[redis.Connection] = field(default_factory=list)
    leaked: list[redis.Connection] = field(default_factory=list)
    drift: float = 0.0
    next_key: int = 0
    owed: float = 0.0
    last: dict[str, float] = field(default_factory=dict)
    last_s: float = 0.0

    def connect(self, into: list[redis.Connection]) -> None:
        connection = self.client.connection_pool.connection_class(**self.client.connection_pool.connection_kwargs)
        connection.connect()
        into.append(connection)

    def tick(self, now_s: float, chance: random.Random, fault: str | None) -> None:
        """The commands of one tick."""
        self.drift = 0.98 * self.drift + chance.gauss(0, 0.02)
        wave = 1 + self.swing * math.sin(2 * math.pi * now_s / self.period_s + self.phase) + self.drift
        rate = max(5.0, self.rate * wave)
        if fault == "stalled client":
            rate /= 10
        self.owed += rate * TICK_S
        count, self.owed = int(self.owed), self.owed % 1
        pipe = self.client.pipeline(transaction=False)
        for _ in range(count):
            times = 4 if fault == "retry storm" else 1
            if chance.random() < self.reads:
                back = int(chance.expovariate(1 / 1100))
                missing = fault == "cold cache" and chance.random() < 0.8
                key = f"absent:{chance.random()}" if missing else f"k:{max(0, self.next_key - 1 - back)}"
                for _ in range(times):
                    pipe.get(key)
            else:
                size = max(8, int(chance.lognormvariate(math.log(self.size), 0.5)))
                forgets = fault == "no expiry"
                value = b"x" * (size * 3 if forgets else size)
                for _ in range(times):
                    pipe.set(f"k:{self.next_key}", value, ex=None if forgets else TTL_S)
                self.next_key += 1
        pipe.execute()
        if fault == "connection leak":
            for _ in range(chance.choice((0, 1))):
                self.connect(self.leaked)
        elif self.leaked:
            self.leaked.pop().disconnect()
        if fault == "slow command" and chance.random() < 3 * TICK_S:
            self.client.eval("local t = redis.call('TIME'); local e = t[1] * 1e6 + t[2] + 60000; repeat t = "
                             "redis.call('TIME') until t[1] * 1e6 + t[2] > e", 0)
        if chance.random() < 0.02:
            if self.idle and chance.random() < 0.5:
                self.idle.pop().disconnect()
            else:
                self.connect(self.idle)

    def read(self) -> list[float] | None:
        """One reading; None the first time, since rates need two."""
        pings = []
        for _ in range(3):
            begin = time.perf_counter()
            self.client.ping()
            pings.append((time.perf_counter() - begin) * 1000)
        now_s = time.monotonic()
        facts: dict[str, Any] = self.client.info("everything")
        counters = {
            "ops": facts["total_commands_processed"], "net_in": facts["total_net_input_bytes"] / 1000,
            "net_out": facts["total_net_output_bytes"] / 1000, "expired": facts["expired_keys"],
            "cpu": (facts["used_cpu_user"] + facts["used_cpu_sys"]) * 100,
            "found": facts["keyspace_hits"], "missed": facts["keyspace_misses"],
        }
        before, passed = self.last, now_s - self.last_s
        self.last, self.last_s = counters, now_s
        if not before:
            return None
        rate = {name: (counters[name] - before[name]) / passed for name in counters}
        asked = rate["found"] + rate["missed"]
        gauges = {
            "clients": facts["connected_clients"], "memory": facts["used_memory"] / 1e6,
            "keys": facts.get("db0", {}).get("keys", 0), "hits": rate["found"] / asked if asked else 1.0,
            "ping": sorted(pings)[1],
        }
        return [round(float({**rate, **gauges}[name]), 4) for name in CHANNELS]


def plan_faults(servers: int, seconds: float, quiet_s: float, chance: random.Random) -> list[Fault]:
    """Faults one after the other, on changing servers, none before `quiet_s`, each kind in turn."""
    kinds = list(WHAT)
    faults: list[Fault] = []
    at_s, turn = quiet_s, 0
    order = chance.sample(range(servers), servers)
    while at_s + 60 < seconds:
        lasts_s = chance.uniform(35, 60)
        faults.append(Fault(order[turn % servers], kinds[turn % len(kinds)], round(at_s), round(at_s + lasts_s)))
        at_s += chance.uniform(45, 75)
        turn += 1
    return faults


def record(
    folder: Path, servers: int, minutes: float, quiet_minutes: float, seed: int, say: Callable[[str], None]
) -> None:
    """Runs the fleet and writes readings.parquet and faults.json."""
    chance = random.Random(seed)
    seconds = minutes * 60
    names = [f"cache-{place + 1:02d}" for place in range(servers)]
    faults = plan_faults(servers, seconds, quiet_minutes * 60, chance)
    rows: list[tuple[str, int, list[float]]] = []
    started = [LocalRedis(folder / "redis" / name) for name in names]
    try:
        for one in started:
            one.__enter__()
        fleet = [
            Server(
                redis.Redis.from_url(one.url), rate=chance.uniform(80, 260), swing=chance.uniform(0.15, 0.35),
                period_s=chance.uniform(150, 320), phase=chance.uniform(0, 6.28), reads=chance.uniform(0.55, 0.8),
                size=chance.uniform(120, 500),
            )
            for one in started
        ]
        for server in fleet:
            for _ in range(chance.randint(4, 14)):
                server.connect(server.idle)
        begin = time.monotonic() + LEAD_S
        begin_ms = int((time.time() + LEAD_S) * 1000)
        tick = -int(LEAD_S / TICK_S)
        while tick * TICK_S < seconds:
            now_s = tick * TICK_S
            time.sleep(max(0.0, begin + now_s - time.monotonic()))
            active = {fault.server: fault.kind for fault in faults if fault.begin_s <= now_s < fault.end_s}
            for place, server in enumerate(fleet):
                server.tick(now_s, chance, active.get(place))
            if tick % round(1 / TICK_S) == 0:
                for place, server in enumerate(fleet):
                    reading = server.read()
                    if reading is not None and now_s >= 0:
                        rows.append((names[place], begin_ms + int(now_s * 1000), reading))
                if tick % 240 == 0:
                    say(f"{now_s:.0f} s, {len(rows)} readings, faults now: {active or 'none'}")
            tick += 1
    finally:
        for one in started:
            one.__exit__(None, None, None)
    columns: dict[str, Any] = {
        "device": pa.array([row[0] for row in rows]).dictionary_encode(),
        "ts": pa.array([row[1] for row in rows], pa.timestamp("ms", "UTC")),
    }
    for place, name in enumerate(CHANNELS):
        columns[name] = pa.array([row[2][place] for row in rows], pa.float32())
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "readings.parquet", compression="zstd", compression_level=19)
    facts = {"units": dict(zip(CHANNELS, UNITS, strict=True)), "begin_ms": begin_ms, "quiet_s": quiet_minutes * 60,
             "faults": [fault.shown(names) for fault in faults]}
    (folder / "faults.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--servers", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--quiet-minutes", type=float, default=11, help="no fault before")
    parser.add_argument("--seed", type=int, default=7)
    to = parser.parse_args()
    record(to.out, to.servers, to.minutes, to.quiet_minutes, to.seed, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
