"""A real Redis (or Valkey) as a child process, on a loopback port, its data and log in one folder."""

import contextlib
from pathlib import Path
from typing import Self

import redis
from redis.exceptions import RedisError

from pipeline.errors import Unreachable
from pipeline.local.machine import redis_server
from pipeline.local.server import Server, free_port


class LocalRedis:
    """One server under `folder`; its append-only file keeps jobs over a restart.

    password : asked of clients where given.
    options : extra command-line options, such as ("--maxmemory", "50mb").
    """

    def __init__(self, folder: Path, password: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.folder = folder.absolute()
        self.password = password
        self.options = options
        self.port = 0
        self.server: Server | None = None

    @property
    def url(self) -> str:
        """redis:// URL, the password included."""
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self.server is not None and self.server.running

    @property
    def ready(self) -> bool:
        """True when it answers a PING."""
        try:
            with contextlib.closing(redis.Redis.from_url(self.url, socket_timeout=1, retry=None)) as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def start(self, timeout_s: float = 20) -> Self:
        """Starts it on its old data and port, and waits until it answers. Raises Unreachable with what to do."""
        program = redis_server()
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "port"
        for attempt in range(3):
            fresh = not kept.exists()
            if fresh:
                kept.write_text(str(free_port()))
            self.port = int(kept.read_text())
            secret = ("--requirepass", self.password) if self.password else ()
            command = [
                program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder),
                "--daemonize", "no", "--appendonly", "yes", "--save", "", *secret, *self.options,
            ]
            self.server = Server("Redis", command, self.folder / "redis.log", grace_s=10)
            try:
                self.server.start()
                self.server.wait(lambda: self.ready, timeout_s)
            except Unreachable:
                taken = "Address already in use" in self.server.last_words()
                self.stop()
                if attempt < 2 and fresh and taken:
                    kept.unlink()
                    continue
                raise
            break
        return self

    def stop(self) -> None:
        """A clean stop; killed after 10 s."""
        if self.server is not None:
            self.server.stop()

    def kill(self) -> None:
        """kill -9."""
        if self.server is not None:
            self.server.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.stop()
