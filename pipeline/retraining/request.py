"""What a retraining job is told: enough to read the same records again, and nothing that runs code."""

import hashlib
import re
from typing import Any

import msgspec

from pipeline.errors import BadInput


class RetrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One wish for a new model, fixed when it is made: whoever runs it, and however often, reads the same records.

    topic         : full name of the stream's topic.
    ranges        : partition -> (first offset, offset after the last).
    contract_hash : contract that the rows are read by; a trainer with another one refuses the job.
    champion      : digest that the challenger starts from and is judged against; None where there is none.
    reason        : which trigger, in words.
    requested_ms  : wall clock, epoch milliseconds; not part of the job's identity.
    """

    stream: str
    topic: str
    ranges: dict[int, tuple[int, int]]
    contract_hash: str
    champion: str | None
    reason: str
    requested_ms: int

    def __post_init__(self) -> None:
        for partition, (start, end) in self.ranges.items():
            if partition < 0 or start < 0 or end < start:
                raise BadInput(f"retrain request: partition {partition} has the range {start}..{end}")
        if not any(end > start for start, end in self.ranges.values()):
            raise BadInput(f"retrain request: the ranges of topic {self.topic} hold no record")

    @property
    def records(self) -> int:
        """Offsets in all ranges together; compaction and transactions may leave fewer records."""
        return sum(end - start for start, end in self.ranges.values())

    @property
    def job_id(self) -> str:
        """The same for the same stream, topic, contract and ranges, so that a second submit is seen to be one."""
        what = msgspec.json.encode(
            [self.stream, self.topic, self.contract_hash, sorted(self.ranges.items())], order="deterministic",
        )
        return job_prefix(self.stream) + hashlib.sha256(what).hexdigest()[:12]


def job_prefix(stream: str) -> str:
    """How the ids of all of a stream's jobs begin; made of letters, digits, '_' and '-' alone."""
    return f"retrain-{re.sub(r'[^A-Za-z0-9_-]', '_', stream)}-{hashlib.sha256(stream.encode()).hexdigest()[:6]}-"


def to_plain(request: RetrainRequest) -> dict[str, Any]:
    """JSON-ready form; the other way is `from_plain`."""
    plain: dict[str, Any] = msgspec.to_builtins(request, str_keys=True)
    return plain


def from_plain(plain: object) -> RetrainRequest:
    """A request from what came out of Redis. Raises BadInput naming the bad field."""
    try:
        return msgspec.convert(plain, RetrainRequest, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        raise BadInput(f"retrain request: {error}") from error
