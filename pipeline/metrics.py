"""Every metric of a worker in one typed list, and the small server of /metrics, /live and /ready.

Counters are moved once a batch, never once a record.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.errors import BadInput

Check = Callable[[], str | None]  # None where all is well, else what is wrong

BATCH_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
END_TO_END_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600)


class Metrics:
    """The list. Labels: `stream` is the name in the configuration, `topic` the short name of an output topic."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"narrows_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"narrows_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"narrows_{name}", text, labels, registry=self.registry, buckets=buckets)

        self.records = counter("records", "Records read.", "stream")
        self.record_bytes = counter("record_bytes", "Bytes of the values of records read.", "stream")
        self.dead_letters = counter("dead_letters", "Records that could not be read.", "stream", "reason")
        self.unknown_fields = counter("unknown_fields", "Fields that the contract does not name.", "stream")
        self.wrong_keys = counter("wrong_keys", "Devices that showed up in two partitions.", "stream")
        self.duplicates = counter("duplicates", "Rows sent again with equal values.", "stream")
        self.late_rows = counter("late_rows", "Rows of the late lane.", "stream")
        self.rows_scored = counter("rows_scored", "Rows with a score.", "stream")
        self.rows_unscored = counter("rows_unscored", "Rows without a score.", "stream", "reason")
        self.episodes = counter("episodes", "Events of episodes.", "stream", "state")
        self.muted_rows = counter("muted_rows", "Rows over the threshold in maintenance.", "stream")
        self.outputs = counter("outputs", "Records delivered.", "topic")
        self.output_bytes = counter("output_bytes", "Bytes of the values of records delivered.", "topic")
        self.block_rows = counter("block_rows", "Rows that went into blocks.", "stream")
        self.block_class_rows = counter("block_class_rows", "Rows in blocks: normal, episode.", "stream", "kind")
        self.block_class_bytes = counter("block_class_bytes", "Bytes of blocks by class.", "stream", "kind")
        self.block_error_rows = counter(
            "block_error_rows", "Mean error as a share of the bound, times rows: over block_class_rows it is the mean.",
            "stream", "kind",
        )
        self.block_largest_error = gauge(
            "block_largest_error", "Largest error of the newest blocks, as a share of the bound.", "stream", "kind"
        )
        self.evicted_devices = counter("evicted_devices", "Devices forgotten to make room for others.", "stream")
        self.commits = counter("commits", "Acknowledged commits.")
        self.rebalances = counter("rebalances", "Assignments of partitions.")
        self.swaps = counter("swaps", "Model changes.", "stream")
        self.refused_bundles = counter("refused_bundles", "Bundles that failed their gate.", "stream")
        self.open_episodes = gauge("open_episodes", "Episodes that are open.", "stream")
        self.devices = gauge("devices", "Devices with state.", "stream")
        self.lag = gauge("lag_records", "Records behind the end of the partition.", "stream", "partition")
        self.stream_time = gauge("stream_time_seconds", "Largest record timestamp.", "stream", "partition")
        self.partitions = gauge("partitions", "Partitions assigned.")
        self.batch_seconds = histogram("batch_seconds", "Time of one batch, delivery included.", BATCH_SECONDS)
        self.end_to_end_seconds = histogram(
            "end_to_end_seconds", "From a record's timestamp to its outputs' delivery.", END_TO_END_SECONDS, "stream"
        )
        self.model = Info("narrows_model", "Digest that scores.", ("stream",), registry=self.registry)
        self.runtime = Info("narrows_runtime", "Version, execution provider.", registry=self.registry)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the process's signals alone: the worker has handlers of its own."""
        yield


@asynccontextmanager
async def serve(metrics: Metrics, host: str, port: int, live: Check, ready: Check) -> AsyncIterator[int]:
    """Answers /metrics, /live and /ready from the running loop; yields the port (a free one for port 0).

    live, ready : None is 200, a text is 503 with that text.
    Raises BadInput where the address can't be bound.
    """
    def answer(check: Check) -> Response:
        wrong = check()
        return PlainTextResponse("ok\n" if wrong is None else f"{wrong}\n", 200 if wrong is None else 503)

    async def scrape(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def is_live(request: Request) -> Response:
        return answer(live)

    async def is_ready(request: Request) -> Response:
        return answer(ready)

    app = Starlette(routes=[Route("/metrics", scrape), Route("/live", is_live), Route("/ready", is_ready)])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BadInput(
            f"worker.metrics_port: {host}:{port} can't be bound ({error.strerror}); choose another, or 0 for a free one"
        ) from error
    config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()
