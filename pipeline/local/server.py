"""One server process as our own child, kept by `keeper.py`: start, stop, kill, pause, what its log says."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import Unreachable

KEEPER = Path(__file__).with_name("keeper.py")

# Below the range from which Linux takes ports for outgoing connections (32768 on): a server that is down keeps its
# port then, and a client that retries can't be connected to itself.
PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unreachable(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop}; end some servers")


class Server:
    """A command run as a child that never outlives us. Output goes to the end of `log`.

    grace_s : time that a clean stop may take before the server is killed.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, grace_s: float = 15
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = env
        self.grace_s = grace_s
        self._keeper: subprocess.Popen | None = None
        self._pid: int | None = None

    def start(self) -> None:
        """Starts the process; returns at once. Does nothing where it runs already."""
        if self.running:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        with open(self.log, "ab") as out, os.fdopen(read, "rb") as report:
            try:
                # -I -S: neither the environment nor site-packages; a session of its own: Ctrl-C is for us alone.
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(KEEPER), str(os.getpid()), str(self.grace_s), str(write),
                     *self.command],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env, pass_fds=(write,),
                    start_new_session=True,
                )
            finally:
                os.close(write)
            told = report.read()
        if not told:
            self.stop()
            raise Unreachable(f"{self.name} did not start: {self.last_words()}")
        self._pid = int(told)

    @property
    def running(self) -> bool:
        """True while the server's process lives."""
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server itself (not of its keeper). Raises Unreachable when it does not run."""
        if self._pid is None or not self.running:
            raise Unreachable(f"{self.name} does not run; its log is {self.log}")
        return self._pid

    def stop(self) -> None:
        """A clean stop; killed after `grace_s`."""
        if self._keeper is not None:
            with contextlib.suppress(Unreachable, ProcessLookupError):
                self.resume()  # a paused process would never see the signal
            self._keeper.terminate()
            self._keeper.wait()
        self._keeper = self._pid = None

    def kill(self) -> None:
        """kill -9, as a fault; returns when the process is gone."""
        if self._keeper is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._keeper.wait()
        self._keeper = self._pid = None

    def pause(self) -> None:
        """SIGSTOP: alive and silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def last_words(self, lines: int = 3) -> str:
        """The last lines of the log that hold an error, else the last lines at all; for an error message."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        wrong = [line for line in text if "ERROR" in line or "FATAL" in line or "Exception" in line]
        return " | ".join((wrong or text)[-lines:]) or f"it said nothing in {self.log}"

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Polls `ready` until it is true. Raises Unreachable when the server ends before, or at the deadline."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise Unreachable(f"{self.name} ended while starting: {self.last_words()} (log: {self.log})")
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"{self.name} was not ready after {timeout_s:.0f} s: {self.last_words()} (log: {self.log})"
                )
            time.sleep(0.05)
