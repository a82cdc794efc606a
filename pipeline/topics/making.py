"""Making topics, and saying what is wrong with those that are there."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import for_code

from pipeline.errors import BadInput, TryAgain
from pipeline.topics.client import Settings, admin_client, ours
from pipeline.topics.definitions import TOPICS, Topic

TOPIC_EXISTS = 36  # TOPIC_ALREADY_EXISTS of the Kafka protocol
PATIENCE_S = 20  # for partitions that were just added
SHOWN = ("cleanup.policy", "retention.ms", "max.message.bytes", "message.timestamp.type")


class Facts(msgspec.Struct, frozen=True):
    """A topic as it is in Kafka. config: the settings in `SHOWN`."""

    name: str
    partitions: int
    replicas: int
    config: dict[str, str]


class Made(msgspec.Struct, frozen=True):
    """What `create` or `grow` did about one topic; made: False where it was so already."""

    name: str
    partitions: int
    made: bool


def describe(settings: Settings, names: Iterable[str]) -> dict[str, Facts]:
    """Facts of those topics that exist."""
    with admin_client(settings) as admin:
        return _describe(admin, list(names))


def create(
    settings: Settings,
    inputs: Sequence[str],
    prefix: str = "",
    partitions: int | None = None,
    replicas: int = -1,
    input_retention_ms: int = -1,
    outputs: Iterable[Topic] = TOPICS.values(),
) -> list[Made]:
    """Makes what is missing of the input topics and of narrows' own.

    partitions : of inputs that are made; an output has as many as the widest input. Default 1.
    replicas   : copies of each partition; -1 is the broker's default.
    input_retention_ms : of inputs that are made; -1 keeps for ever, and so keeps recorded data with old timestamps.
    Raises BadInput, naming the topic and the remedy, when one that is there does not fit.
    """
    outputs = list(outputs)
    with admin_client(settings) as admin:
        known = _describe(admin, [*inputs, *(topic.full_name(prefix) for topic in outputs)])
        wanted: dict[str, tuple[int, dict[str, str]]] = {}
        for name in inputs:
            count = known[name].partitions if name in known else partitions or 1
            wanted[name] = count, {"retention.ms": str(input_retention_ms)}
        widest = max((count for count, _ in wanted.values()), default=partitions or 1)
        _fits(known, widest, prefix, outputs)
        for topic in outputs:
            wanted[topic.full_name(prefix)] = topic.partitions or widest, topic.config
        missing = {
            name: {"num_partitions": count, "replication_factor": replicas, "configs": config}
            for name, (count, config) in wanted.items()
            if name not in known
        }
        if missing:
            said = admin.create_topics(missing, raise_errors=False)
            for topic in said["topics"]:
                # Somebody who makes the same topics at the same moment is no error.
                if topic["error_code"] not in (0, TOPIC_EXISTS):
                    raise ours(for_code(topic["error_code"])(f"{topic['name']}: {topic['error_message']}"), settings)
            admin.wait_for_topics(list(missing))
    return [Made(name, count, name in missing) for name, (count, _) in wanted.items()]


def check(
    settings: Settings, inputs: Sequence[str], prefix: str = "", outputs: Iterable[Topic] = TOPICS.values()
) -> dict[str, Facts]:
    """Facts of all topics when each is there and fits; what a worker asks before it starts.

    Raises BadInput naming the first topic that is missing or does not fit, and what to do.
    """
    outputs = list(outputs)
    names = [*inputs, *(topic.full_name(prefix) for topic in outputs)]
    known = describe(settings, names)
    for name in names:
        if name not in known:
            raise BadInput(f"topic {name} is missing: make it with `narrows topics create`")
    _fits(known, max((known[name].partitions for name in inputs), default=1), prefix, outputs)
    return known


def grow(
    settings: Settings, inputs: Sequence[str], partitions: int, prefix: str = "",
    outputs: Iterable[Topic] = TOPICS.values(),
) -> list[Made]:
    """Gives inputs that have fewer this many partitions, and first the outputs that follow them.

    Outputs first: a worker that meets a new partition writes to the one of the same number. Raises BadInput where a
    topic has more already (Kafka takes none away) or an input is missing.
    """
    outputs = [topic for topic in outputs if topic.partitions is None]
    names = [*(topic.full_name(prefix) for topic in outputs), *inputs]
    with admin_client(settings) as admin:
        known = _describe(admin, names)
        for name in names:
            if name in inputs and name not in known:
                raise BadInput(f"topic {name} is missing: make it with `narrows topics create`")
            if name in known and known[name].partitions > partitions:
                raise BadInput(
                    f"topic {name} has {known[name].partitions} partitions already, more than {partitions}, and Kafka "
                    "takes none away: give at least as many"
                )
        for name in names:
            if name in known and known[name].partitions < partitions:
                admin.create_partitions({name: partitions})
        deadline = time.monotonic() + PATIENCE_S
        while any(facts.partitions < partitions for facts in _describe(admin, list(known)).values()):
            if time.monotonic() > deadline:
                raise TryAgain(f"the broker does not show {partitions} partitions of each topic yet: look again")
            time.sleep(0.1)   # brokers hear of new partitions one after the other
    return [Made(name, partitions, known[name].partitions < partitions) for name in names if name in known]


def _fits(known: dict[str, Facts], widest: int, prefix: str, outputs: Iterable[Topic]) -> None:
    """Raises BadInput for the first output topic that is there and not as it must be."""
    for topic in outputs:
        name = topic.full_name(prefix)
        facts = known.get(name)
        if facts is None:
            continue
        count = topic.partitions or widest
        if facts.partitions < count:
            raise BadInput(
                f"topic {name} has {facts.partitions} partitions and must have {count}, as its input: "
                f"add them with `kafka-topics.sh --alter --topic {name} --partitions {count}`"
            )
        if facts.partitions > count:
            raise BadInput(
                f"topic {name} has {facts.partitions} partitions and must have {count}, as its input: "
                "give the input as many, or set another kafka.topic_prefix and run `narrows topics create`"
            )
        if topic.cleanup == "compact" and "delete" in facts.config.get("cleanup.policy", ""):
            raise BadInput(
                f"topic {name} forgets old records and must not: "
                f"`kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=compact`"
            )


def _describe(admin: Any, names: Sequence[str]) -> dict[str, Facts]:
    if not names:
        return {}
    asked = admin.describe_topics(list(names))
    there = {facts["name"]: facts["partitions"] for facts in asked if not facts["error_code"]}
    if not there:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    return {
        name: Facts(
            name, len(places), len(places[0]["replica_nodes"]),
            {key: str(configs[name][key]["value"]) for key in SHOWN if key in configs[name]},
        )
        for name, places in there.items()
    }
