"""Every error that narrows raises on purpose: the class is the decision, the message says what to do.

Exit codes of the command line stand beside the classes, in one place:
0 ok, 1 failure, 2 usage (typer's own), 3 bad configuration or input, 4 a dependency can't be reached.
"""


class NarrowsError(Exception):
    """Base of every deliberate error; ends the process with `exit_code` when nobody catches it."""

    exit_code = 1


class BadInput(NarrowsError):
    """A file, configuration, contract or bundle that we refuse; mend it and call again."""

    exit_code = 3


class BadBundle(BadInput):
    """A bundle that is half written, altered, made for another contract, or that fails its gate."""


class BadRecord(NarrowsError):
    """One record that can't be read: dead-letter it and go on."""


class TryAgain(NarrowsError):
    """A passing fault: back off and repeat."""


class Unreachable(NarrowsError):
    """A broker, Redis, Java runtime or jar that is needed and not there."""

    exit_code = 4


class StopWorker(NarrowsError):
    """This worker can't go on; the next one resumes at the commit."""


class Stalled(StopWorker):
    """The watchdog saw records wait and none finished; an exit code of its own, so that a supervisor can tell it."""

    exit_code = 5


class LoopStalled(Stalled):
    """The watchdog saw the event loop stand still: something computes or waits where it must not."""

    exit_code = 6


class NoAssignment(Stalled):
    """The watchdog saw a rebalance that never ended: the worker has no partitions and waits for some."""

    exit_code = 7
