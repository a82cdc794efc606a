"""Consumer groups from outside: where one stands, who is in it, moving it."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from kafka import TopicPartition
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError, for_code
from kafka.structs import OffsetAndMetadata

from pipeline.errors import BadInput, Unreachable
from pipeline.topics.client import Settings, admin_client

SETTLING = (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError)
PATIENCE_S = 20  # a new broker makes its offsets topic at the first question

Found = TypeVar("Found")


class Committed(msgspec.Struct, frozen=True):
    """A commit: the next offset, and the text beside it."""

    offset: int
    metadata: str


class Group(msgspec.Struct, frozen=True):
    """A group: how many members it has, and its state in Kafka's words (Dead where nobody has used it)."""

    members: int
    state: str


def committed(settings: Settings, group: str) -> dict[tuple[str, int], Committed]:
    """Every commit of a group, by topic and partition."""
    with admin_client(settings) as admin:
        held: Mapping[Any, Any] = patiently(lambda: admin.list_group_offsets({group: None})).get(group, {})
    return {
        (place.topic, place.partition): Committed(at.offset, at.metadata or "")
        for place, at in held.items() if at.offset >= 0
    }


def describe_group(settings: Settings, group: str) -> Group:
    """Members and state of a group."""
    with admin_client(settings) as admin:
        facts = patiently(lambda: admin.describe_groups([group]))[group]
    return Group(len(facts.get("members") or ()), str(facts.get("group_state") or "Dead"))


def move(settings: Settings, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
    """Sets the group's commits, without metadata. Raises BadInput while it has members, Unreachable."""
    if members := describe_group(settings, group).members:
        raise BadInput(f"group {group} has {members} workers running: stop them first")
    wanted = {TopicPartition(*place): OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()}
    with admin_client(settings) as admin:
        said: Mapping[Any, Any] = patiently(lambda: admin.alter_group_offsets(group, wanted))
    for place, error in said.items():
        if getattr(error, "errno", 0):
            name = getattr(for_code(error.errno), "__name__", error)
            raise Unreachable(f"Kafka did not move {place.topic}[{place.partition}] of group {group}: {name}")


def patiently(ask: Callable[[], Found]) -> Found:
    """The answer, asked again while the broker has not settled who keeps the group."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except SETTLING:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
