"""Whether the broker lets us do what a worker does, asked before the first record: the list in docs/topics.md."""

from collections.abc import Iterable
from typing import Any

from kafka.errors import GroupAuthorizationFailedError

from pipeline.errors import Unreachable
from pipeline.topics.client import Settings, admin_client
from pipeline.topics.groups import patiently

NO_RIGHT = 29   # TOPIC_AUTHORIZATION_FAILED of the Kafka protocol


def check_rights(
    settings: Settings, group: str, reads: Iterable[str] = (), writes: Iterable[str] = (),
) -> None:
    """Raises Unreachable naming the first topic or group and the right that this user lacks there.

    reads, writes : full names of topics. A broker without an authorizer allows everything.
    """
    wanted = [(name, "READ") for name in reads] + [(name, "WRITE") for name in writes]
    with admin_client(settings) as admin:
        found = {facts["name"]: facts for facts in admin.describe_topics(sorted({name for name, _ in wanted}))}
        for name, right in wanted:
            if not _is_allowed(found.get(name, {}), right):
                raise Unreachable(f"topic {name}: the broker does not let us; grant {right} to this user: {_REMEDY}")
        try:
            facts = patiently(lambda: admin.describe_groups([group], include_authorized_operations=True))[group]
        except GroupAuthorizationFailedError as error:
            raise Unreachable(f"group {group}: {_NO_GROUP}") from error
        if not _is_allowed(facts, "READ"):
            raise Unreachable(f"group {group}: {_NO_GROUP}")


_REMEDY = "docs/topics.md lists what a worker needs"
_NO_GROUP = f"the broker does not let us join; grant READ on it to this user: {_REMEDY}"


def _is_allowed(facts: dict[str, Any], right: str) -> bool:
    if facts.get("error_code") == NO_RIGHT:
        return False
    operations = facts.get("authorized_operations")   # names; none where the broker does not say
    return not operations or right in operations
