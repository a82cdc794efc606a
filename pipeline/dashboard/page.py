"""The page: one HTML file without anything from elsewhere, and the snapshot as server-sent events."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from importlib.resources import files

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.dashboard.watch import Watch
from pipeline.errors import BadInput

EVERY_S = 1.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}


def make_app(watch: Watch) -> Starlette:
    """`/` the page, `/events` a snapshot a second, `/snapshot` one, all of them to be read only."""
    page = files("pipeline.dashboard").joinpath("page.html").read_text(encoding="utf-8")

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def snapshot(request: Request) -> Response:
        return Response(msgspec.json.encode(watch.snapshot()), media_type="application/json", headers=HEADERS)

    async def events(request: Request) -> Response:
        async def beats() -> AsyncIterator[bytes]:
            while not await request.is_disconnected():
                yield b"data: " + msgspec.json.encode(watch.snapshot()) + b"\n\n"
                await asyncio.sleep(EVERY_S)

        return StreamingResponse(beats(), media_type="text/event-stream", headers=HEADERS)

    return Starlette(routes=[Route("/", index), Route("/events", events), Route("/snapshot", snapshot)])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises BadInput where the address can't be bound."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BadInput(
            f"dashboard.port: {host}:{port} can't be bound ({error.strerror}); choose another, or 0 for a free one"
        ) from error
    return listener


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leaves the process's signals alone: the command has its own."""
        yield


async def serve(watch: Watch, listener: socket.socket) -> None:
    """The page and what it shows, until cancelled."""
    config = uvicorn.Config(
        make_app(watch), log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=1
    )
    server = _Server(config)
    following = asyncio.create_task(watch.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait((following, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await serving
