"""`narrows local`: Kafka and Redis that stay up after the command that started them, kept by one detached process.

Invariant: while the supervisor lives it holds a lock on FOLDER/lock, and only while it holds it do the servers live
(they end with their parent, see keeper.py). So the lock, not a pid, says whether they are up.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from pipeline.errors import NarrowsError, Unreachable
from pipeline.local.kafka import LocalKafka
from pipeline.local.redis import LocalRedis

DEFAULT_FOLDER = Path(".narrows/local")
LOOK_EVERY_S = 0.2


class State(msgspec.Struct, frozen=True):
    """What is up: the supervisor's pid, addresses, the folder of data and logs."""

    pid: int
    kafka: str
    redis: str
    folder: str

    @property
    def environment(self) -> dict[str, str]:
        """The configuration variables that point narrows at these servers."""
        return {"NARROWS_KAFKA__BOOTSTRAP": self.kafka, "NARROWS_REDIS__URL": self.redis}


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the starting supervisor: progress, or an error with its exit code, or the state when all is up."""

    line: str = ""
    error: str = ""
    exit_code: int = 1
    state: State | None = None


def status(folder: Path) -> State | None:
    """What is up under `folder`; None when nothing is."""
    with contextlib.suppress(FileNotFoundError), locked(folder) as free:
        if not free:
            with contextlib.suppress(FileNotFoundError):
                return msgspec.json.decode((folder / "state.json").read_bytes(), type=State)
    return None


def up(folder: Path, nodes: int = 1, say: Callable[[str], None] = lambda line: None) -> State:
    """Starts the servers, detached, and returns when they answer; what is up already is left as it is.

    Raises Unreachable with what to do when something that is needed is not there.
    """
    running = status(folder)
    if running is not None:
        return running
    folder.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    with open(folder / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.local.supervisor", str(folder.absolute()), str(nodes), str(write)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write,), start_new_session=True,
        )
    os.close(write)
    try:
        with os.fdopen(read, "rb") as lines:
            for raw in lines:
                told = msgspec.json.decode(raw, type=Told)
                if told.state is not None:
                    return told.state
                if told.error:
                    failure = Unreachable(told.error)
                    failure.exit_code = told.exit_code
                    raise failure
                say(told.line)
    except KeyboardInterrupt:
        process.terminate()
        raise
    raise Unreachable(f"the local servers did not start; see {folder / 'supervisor.log'}")


def down(folder: Path, timeout_s: float = 40, delete: bool = False) -> bool:
    """Stops what is up under `folder`; False when nothing was. `delete` removes data and logs too."""
    running = status(folder)
    if running is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while status(folder) is not None:
            if time.monotonic() > deadline:
                raise Unreachable(f"the local servers did not stop in {timeout_s:.0f} s; end process {running.pid}")
            time.sleep(0.05)
    if delete:
        shutil.rmtree(folder, ignore_errors=True)
    return running is not None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock inside the block; False when somebody else holds it."""
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run(folder: Path, nodes: int, report: IO[bytes]) -> int:
    """The supervisor itself: starts, reports on `report`, stays until SIGTERM or until a server ends by itself."""

    def tell(told: Told) -> None:
        with contextlib.suppress(BrokenPipeError):
            report.write(msgspec.json.encode(told) + b"\n")
            report.flush()

    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    state_file = folder / "state.json"
    with locked(folder) as free:
        if not free:
            tell(Told(error=f"somebody else is starting servers in {folder}; wait for them"))
            return 1
        try:
            with (
                LocalRedis(folder / "redis") as redis,
                LocalKafka(folder / "kafka", nodes, say=lambda line: tell(Told(line=line))) as kafka,
            ):
                state = State(os.getpid(), kafka.bootstrap, redis.url, str(folder))
                state_file.write_bytes(msgspec.json.encode(state))
                tell(Told(state=state))
                report.close()
                while not asked.wait(LOOK_EVERY_S):
                    if not (kafka.running and redis.running):
                        print("a server ended by itself; stopping the other", flush=True)
                        return 1
        except NarrowsError as error:
            tell(Told(error=str(error), exit_code=error.exit_code))
            return error.exit_code
        finally:
            state_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), os.fdopen(int(sys.argv[3]), "wb")))
