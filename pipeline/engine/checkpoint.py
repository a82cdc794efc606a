"""What a commit says beside its offset: everything that another worker needs to go on as if nothing had happened.

Kafka's committed offset is `next`: all triggers below it are delivered. The metadata beside it (at most 4 096 bytes)
holds the rest. A reader that does not know the version refuses to guess.
"""

import msgspec

from pipeline.errors import StopWorker

VERSION = 1
LIMIT_BYTES = 4096  # Kafka's offset.metadata.max.bytes


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={
    "version": "v", "mark": "m", "mark_time": "t", "until": "u", "epoch": "e", "digests": "d", "attempts": "c",
    "attempt_end": "o", "crashed": "x", "plan": "p",
}):
    """State of one partition as of its committed offset.

    mark      : offset from which a replay rebuilds all state.
    mark_time : stream time as of the mark, -1 at a log's start.
    until     : nobody emits a trigger at or beyond it without committing first.
    epoch     : which entries of `narrows.state` belong to this commit.
    digests   : stream -> digest that scores from this commit on.
    attempts  : how often work on what follows was begun and not ended, the present time included; see `Attempts`.
    attempt_end : how far that work reaches, exclusive; -1: to `until`.
    crashed   : offsets from the mark on of records that kill whoever reads them: a replay leaves them out again.
    plan      : offset in `narrows.maintenance` below which windows hold from this commit on.
    """

    mark: int
    mark_time: int
    until: int
    epoch: str
    digests: dict[str, str]
    attempts: int = 0
    attempt_end: int = -1
    crashed: tuple[int, ...] = ()
    plan: int = 0
    version: int = VERSION

    def encode(self) -> str:
        """As commit metadata. Raises StopWorker where too many streams share the topic, or too many records crash."""
        text = msgspec.json.encode(self).decode()
        if len(text) > LIMIT_BYTES and len(self.crashed) > len(self.digests):
            raise StopWorker(
                f"commit metadata of {len(text)} bytes is over Kafka's {LIMIT_BYTES}: {len(self.crashed)} records "
                "from the mark on ended a worker three times each (see the dead letters with reason `crashed`): that "
                "is a fault of the worker, not of records; mend it first"
            )
        if len(text) > LIMIT_BYTES:
            raise StopWorker(
                f"commit metadata of {len(text)} bytes is over Kafka's {LIMIT_BYTES}: {len(self.digests)} streams "
                "share one topic; give some of them a topic of their own"
            )
        return text


class _Version(msgspec.Struct):
    version: int = msgspec.field(name="v")


def read_checkpoint(metadata: str, where: str) -> Checkpoint | None:
    """The checkpoint of a commit; None for a commit without one (`narrows offsets reset` makes such).

    where : topic and partition, for the message. Raises StopWorker for anything that is not ours.
    """
    if not metadata:
        return None
    try:
        if msgspec.json.decode(metadata, type=_Version).version > VERSION:
            raise StopWorker(f"{where}: the commit was made by a newer narrows; update this worker")
        return msgspec.json.decode(metadata, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise StopWorker(
            f"{where}: the commit's metadata is not a narrows checkpoint ({error}): another program commits in this "
            "group. Give narrows a group of its own (kafka.group), or `narrows offsets reset`"
        ) from error
