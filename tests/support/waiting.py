"""Waiting for a state with a deadline, and knowing that a process is gone."""

import time
from collections.abc import Callable

import psutil


def gone(pid: int) -> bool:
    """True when no such process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(claim: Callable[[], object], timeout_s: float = 20) -> bool:
    """Polls `claim` until it holds; False at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
