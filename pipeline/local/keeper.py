"""Keeps one server: starts it as a child, and ends it when asked or when our own parent is gone.

Invariant: the server never outlives the process that wanted it, however that process ended. Two things keep it:
this keeper sees its parent go (also by SIGKILL) and stops the server; and where the keeper itself is killed, the kernel
kills the server (PR_SET_PDEATHSIG, Linux). The signal alone would not do, since it fires when the *thread* that started
the server ends; the keeper has one thread.

Standard library only, run by path and isolated (`python -I -S keeper.py PARENT GRACE_S REPORT_FD COMMAND...`), so that
it costs 30 ms and 10 MB and needs no package. Writes the server's pid to REPORT_FD. Exits with the server's status.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

PR_SET_PDEATHSIG = 1
LOOK_EVERY_S = 0.1


class Asked(Exception):
    """Somebody sent us a signal to stop."""


def asked(number: int, frame: FrameType | None) -> None:
    """Signal handler."""
    raise Asked


def die_with_keeper() -> None:
    """Runs in the child before the server's program: the kernel kills it when the keeper dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(parent: int, grace_s: float, report: int, command: list[str]) -> int:
    """Runs `command` until it ends, we are asked to stop, or `parent` is gone; returns its exit status."""
    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=die_with_keeper if sys.platform == "linux" else None
    )
    try:
        os.write(report, b"%d" % server.pid)
        os.close(report)
        while server.poll() is None and os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
    except Asked:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(grace_s)
        except subprocess.TimeoutExpired:
            server.kill()
    return server.wait()


if __name__ == "__main__":
    sys.exit(abs(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
