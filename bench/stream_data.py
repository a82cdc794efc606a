"""The topic and the model that the stream benchmarks share."""

import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from pipeline.codec.train import train_codec
from pipeline.core.contract import Channel, Contract
from pipeline.core.scaling import Scaling
from pipeline.core.score import Scorer
from pipeline.registry.bundle import Bundle, write_bundle
from pipeline.scoring.gate import make_golden
from pipeline.scoring.session import Session

CHANNELS = [f"ch{i}" for i in range(8)]
ARROW_ROWS = 100   # of one device in one record
START_MS = 1_700_000_000_000


def contract(hop: int, step_ms: int = 1000) -> Contract:
    """Eight channels, 1 Hz unless said, windows of 32 rows, spans of 64; a device may send ARROW_ROWS at a time."""
    return Contract(
        allowance_ms=2 * ARROW_ROWS * step_ms,
        channels=tuple(Channel(name=name, bound=1e-3) for name in CHANNELS), hop=hop,
        step_ms=step_ms, memory=160 if hop == 1 else 32, span_ms=64 * step_ms,
    )


def dense_autoencoder(seed: int = 0) -> bytes:
    """ONNX of a dense autoencoder 256-64-8-64-256 with random weights; `newest` uses the last layer's last rows."""
    rng = np.random.default_rng(seed)

    def layer(n: int, m: int) -> np.ndarray:
        return rng.normal(0, n**-0.5, (n, m)).astype(np.float32)

    last = layer(64, 256)
    tensors = {
        "w1": layer(256, 64), "w2": layer(64, 8), "w3": layer(8, 64), "w4": last, "w4n": last[:, -8:].copy(),
        "b1": np.zeros(64, np.float32), "b2": np.zeros(8, np.float32), "b3": np.zeros(64, np.float32),
        "b4": np.zeros(256, np.float32), "b4n": np.zeros(8, np.float32),
        "flat": np.array([-1, 256]), "whole": np.array([-1, 32, 8]), "row": np.array([-1, 1, 8]),
    }
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "flat"], ["a0"]), node("Gemm", ["a0", "w1", "b1"], ["a1"]), node("Relu", ["a1"], ["r1"]),
        node("Gemm", ["r1", "w2", "b2"], ["latent"]), node("Gemm", ["latent", "w3", "b3"], ["a3"]),
        node("Relu", ["a3"], ["r3"]), node("Gemm", ["r3", "w4", "b4"], ["a4"]),
        node("Reshape", ["a4", "whole"], ["rebuilt"]), node("Gemm", ["r3", "w4n", "b4n"], ["n4"]),
        node("Reshape", ["n4", "row"], ["newest"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "dense", [value("x", TensorProto.FLOAT, ["b", 32, 8])],
        [value("newest", TensorProto.FLOAT, ["b", 1, 8]), value("latent", TensorProto.FLOAT, ["b", 8]),
         value("rebuilt", TensorProto.FLOAT, ["b", 32, 8])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def make_bundle(folder: Path, hop: int, step_ms: int = 1000, seed: int = 0) -> Bundle:
    """The light profile: one member, three constants; the threshold lies where one row in some thousands is over it."""
    made = contract(hop, step_ms)
    shape = (1, 1, 3, 8)
    scorer = Scorer(
        alphas=np.array([1.0, 0.3, 0.1]), length=made.filter_length, clip=6.0, mean=np.zeros(shape),
        whiten=np.broadcast_to(np.eye(8), (*shape, 8)).copy(), sd=np.ones(shape), member_threshold=np.full((1, 3), 5.0),
        weight=np.full((1, 3), 1 / 3), threshold=1.1, shift_mean=np.zeros((1, 8)), shift_whiten=np.eye(8)[None],
    )
    model = dense_autoencoder(seed)
    rows = np.random.default_rng(2).normal(0, 1, (4000, 8)).round(4).astype(np.float32)
    return write_bundle(
        folder, contract=made, scaling=Scaling((), np.zeros((1, 8)), np.ones((1, 8))), scorer=scorer, model=model,
        golden=make_golden(Session(model), scorer, made), family="dense", members=("dense",),
        codec=train_codec([rows], made.bounds, step_ms=made.step_ms).to_bytes(),
    )


def rows_for(about: int, devices: int) -> int:
    """Rows near `about` from which windows by count and windows by time make equally many results.

    Each device sends 32 m + 31 rows: m whole windows by count; and m rows at which a step of 32 rows by the clock ends
    with 32 rows behind it, whatever the device's phase.
    """
    return devices * (32 * round((about / devices - 31) / 32) + 31)


def results_of(rows: int, devices: int) -> int:
    """Results at hop 32 of so many rows."""
    return devices * (rows // devices // 32)


def load_topic(
    bootstrap: str, topic: str, rows: int, devices: int, partitions: int, seed: int = 1, encoding: str = "json"
) -> int:
    """`rows` wide rows of `devices` devices in round robin, 1 Hz each, timestamps as they would have come.

    Returns the number of records: one a row, but for Arrow, where a device sends 100 rows at a time.
    """
    from confluent_kafka import Producer

    rng = np.random.default_rng(seed)
    names = [f"device-{i:06d}" for i in range(devices)]
    noise = rng.normal(0, 1, (5000, 8)).round(4)
    phase = rng.integers(0, 1000, devices).tolist()
    producer = Producer({
        "bootstrap.servers": bootstrap, "linger.ms": 20, "batch.size": 1 << 20, "queue.buffering.max.messages": 500_000,
        "enable.idempotence": True,   # else a batch that is sent again comes behind later ones
    })
    records = 0
    for device, ts, value in _records(encoding, rows, names, noise, phase):
        while True:
            try:
                producer.produce(topic, value, names[device], partition=device % partitions, timestamp=ts)
                break
            except BufferError:
                producer.poll(0.1)
        records += 1
        if records % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(60)
    if left:
        raise RuntimeError(f"{left} records were not delivered")
    return records


def _records(
    encoding: str, rows: int, names: list[str], noise: np.ndarray, phase: list[int]
) -> Iterator[tuple[int, int, bytes | str]]:
    """(device, timestamp, value) in the order of the log."""
    devices = len(names)
    if encoding == "json":   # put together from parts: encoding two million records takes longer than a run
        bodies = [msgspec.json.encode(dict(zip(CHANNELS, row.tolist(), strict=True))).decode() for row in noise]
        for i in range(rows):
            device = i % devices
            ts = START_MS + 1000 * (i // devices) + phase[device]
            yield device, ts, f'{{"device":"{names[device]}","ts":{ts},"values":{bodies[(i * 7919) % 5000]}}}'
        return
    each = ARROW_ROWS if encoding == "arrow" else 1
    encode = ENCODERS[encoding]
    for first in range(0, rows // devices, each):
        index = np.arange(first, min(first + each, rows // devices))
        for device, name in enumerate(names):
            ts = START_MS + 1000 * index + phase[device]
            yield device, int(ts[-1]), encode(name, ts, noise[((index * devices + device) * 7919) % 5000])


def _msgpack(device: str, ts_ms: np.ndarray, values: np.ndarray) -> bytes:
    body = dict(zip(CHANNELS, values[0].tolist(), strict=True))
    return msgspec.msgpack.encode({"device": device, "ts": int(ts_ms[0]), "values": body})


def _cbor(device: str, ts_ms: np.ndarray, values: np.ndarray) -> bytes:
    """RFC 8949: a map of three; text below 24 bytes, an unsigned integer of 64 bits, floats of 64 bits."""
    def text(word: str) -> bytes:
        return bytes([0x60 + len(word)]) + word.encode()

    numbers = b"".join(
        text(name) + b"\xfb" + struct.pack(">d", value)
        for name, value in zip(CHANNELS, values[0].tolist(), strict=True)
    )
    return (b"\xa3" + text("device") + text(device) + text("ts") + b"\x1b" + struct.pack(">Q", int(ts_ms[0]))
            + text("values") + bytes([0xA0 + len(CHANNELS)]) + numbers)


def _arrow(device: str, ts_ms: np.ndarray, values: np.ndarray) -> bytes:
    """An IPC stream of one batch, channels of 32 bits flat beside device and ts."""
    channels = dict(zip(CHANNELS, values.T.astype(np.float32), strict=True))
    columns = {"device": [device] * len(ts_ms), "ts": ts_ms} | channels
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


ENCODERS = {"msgpack": _msgpack, "cbor": _cbor, "arrow": _arrow}
