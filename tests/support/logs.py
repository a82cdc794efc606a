"""Logs of one partition with everything in them that a stream must bear."""

import numpy as np

from tests.support.oracle import Record

# (value, reason) of records that nobody can read.
POISON: list[tuple[bytes | None, str]] = [
    (None, "tombstone"), (b"", "bad_json"), (b"\xff\xfe", "bad_utf8"), (b"[1,2]", "wrong_type"), (b"17", "wrong_type"),
    (b'{"device":"x","ts":1,"values":{"c0":"high"}}', "wrong_type"),
    (b'{"device":"x","ts":1,"values":{"c0":NaN}}', "not_finite"),
    (b'{"device":"x","ts":1,"values":{"c0":1e39}}', "overflow"),
    (b'{"device":"x","ts":99999999999999999999,"values":{"c0":1}}', "bad_time"),
    (b'{"device":"x","ts":-5,"values":{"c0":1}}', "bad_time"),
    (b'{"device":"x","ts":4000000000000,"values":{"c0":1}}', "future"),
    (b'{"device":"x","ts":1000,"values":{"other":1}}', "no_channel"),
    (b'{"device":"x","ts":1000,"values":{"c0":null,"c1":null,"c2":null}}', "no_channel"),
    (b'{"device":"","ts":1000,"values":{"c0":1}}', "no_device"),
    # Three records that only joined make valid JSON.
    (b'{"device":"x","ts":1000,"values":{"c0":1}', "bad_json"), (b"}", "bad_json"), (b"{}", "no_channel"),
    (b'{"device":"x","values":' + b"[" * 100_000, "too_deep"),
    (b'{"device":"x","ts":1000,"pad":"' + b"a" * 900_000 + b'"}', "too_large"),
]


# That a device's clock runs ahead: with the half hour of d5 still less than what is dead-lettered as the future.
MOST_AHEAD_MS = 1_500_000


def make_log(seed: int, records: int = 1500, channels: int = 3) -> list[Record]:
    """Devices of many kinds: steady, slow, vanishing, bursting, sending again, with wrong clocks; records rejected."""
    rng = np.random.default_rng(seed)
    devices = [f"d{i}" for i in range(9)]
    own = {name: 1_000_000 + int(rng.integers(0, 20_000)) for name in devices}
    sent: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in devices}
    now, log, offset = 1_000_000, [], int(rng.integers(0, 50))
    while len(log) < records:
        now += int(rng.exponential(120))
        time = now + int(rng.integers(-300, 300))
        name = devices[int(rng.integers(0, len(devices)))]
        kind = int(name[1:])
        if rng.random() < 0.01:
            log.append(Record(offset, time, name, 0, None))
        elif kind == 0 and (now // 60_000) % 2:
            continue
        elif kind == 1 and rng.random() < 0.9:
            continue
        elif kind == 2 and sent[name] and rng.random() < 0.15:
            back = int(rng.integers(1, 25))
            for ts, values in sent[name][-back:]:
                changed = values + np.float32(1) if rng.random() < 0.2 else values
                log.append(Record(offset, time, name, ts, changed))
                offset += 1
            continue
        elif kind == 3 and rng.random() < 0.05:
            start = own[name] - int(rng.integers(10_000, 200_000))
            for i in range(int(rng.integers(3, 30))):
                log.append(Record(offset, time, name, max(0, start + 1000 * i), rng.normal(0, 1, channels).astype("f")))
                offset += 1
            continue
        elif own[name] > now + MOST_AHEAD_MS:
            continue
        else:
            own[name] += int(rng.choice([1000, 1000, 1000, 2000, 900, 7000 if kind == 4 else 1000]))
            ts = own[name] + (1_800_000 if kind == 5 else 0) - (int(rng.integers(0, 3)) * 1100 if kind == 6 else 0)
            values = rng.normal(0, 1, channels).astype("f")
            if rng.random() < 0.03:
                values *= 6
            if kind == 7:
                values[rng.random(channels) < 0.2] = np.nan
                values[0] = 1.0
            log.append(Record(offset, time, name, ts, values))
            sent[name].append((ts, values))
        offset += 1 if rng.random() < 0.95 else int(rng.integers(2, 6))   # compaction leaves holes
    return log


def poisoned(log: list[Record], every: int = 60) -> list[Record]:
    """The log with each kind of poison in it, `every` so many records; three of them stand side by side."""
    log = list(log)
    for i, (raw, reason) in enumerate(POISON):
        at = every * (i + 1)
        log.insert(at, Record(0, log[at].time, f"p{i}", 0, None, raw, reason))
    pieces = (b'{"device":"x","ts":1000,', b'"values":{"c0":', b"1}}")
    log[every // 2 : every // 2] = [Record(0, log[every].time, "q", 0, None, piece, "bad_json") for piece in pieces]
    return log
