"""The topics that narrows writes: their names, and how Kafka is to keep each.

Invariant: output partition = input partition. So every output topic that follows its input has as many partitions as
the widest input, and a device's outputs lie in the partition with the number of the one that its readings come in.
"""

from typing import Literal

import msgspec

DAY_MS = 86_400_000
MIB = 1 << 20


class Topic(msgspec.Struct, frozen=True):
    """One output topic.

    name          : short name; in Kafka it is PREFIXnarrows.NAME.
    cleanup       : `delete` forgets by age, `compact` keeps the newest record of each key for ever.
    retention_ms  : age at which records of a `delete` topic go; -1 never.
    partitions    : fixed count, or None for that of the input.
    message_bytes : largest record batch that the broker takes.
    packed        : its values are compressed already: the broker keeps batches as they are sent, which is without.
    """

    name: str
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int = -1
    partitions: int | None = None
    message_bytes: int = MIB
    packed: bool = False

    def full_name(self, prefix: str = "") -> str:
        """The name in Kafka."""
        return f"{prefix}narrows.{self.name}"

    @property
    def config(self) -> dict[str, str]:
        """Kafka's topic configuration."""
        common = {"cleanup.policy": self.cleanup, "max.message.bytes": str(self.message_bytes)}
        if self.packed:
            common["compression.type"] = "producer"
        if self.cleanup == "compact":
            return common
        # By arrival: outputs of replayed records carry old times, and an age counted from those would delete them
        # minutes after they were written.
        return {**common, "retention.ms": str(self.retention_ms), "message.timestamp.type": "LogAppendTime"}


TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic("scores", retention_ms=7 * DAY_MS),
        Topic("anomalies", retention_ms=90 * DAY_MS),
        Topic("blocks", packed=True),
        Topic("features", retention_ms=90 * DAY_MS),
        # A rejected record comes whole beside its headers: room for those above the usual limit of an input topic.
        Topic("dead-letters", retention_ms=30 * DAY_MS, message_bytes=MIB + MIB // 4),
        Topic("state", cleanup="compact"),
        Topic("models", cleanup="compact", partitions=1),
        Topic("codecs", cleanup="compact", partitions=1, message_bytes=16 * MIB),
        Topic("feedback", cleanup="compact", partitions=1),   # what people said of episodes, by episode
        # Windows by id. Not compacted: a commit names how far it was known, and what was known there must stay.
        Topic("maintenance", partitions=1),
    )
}
