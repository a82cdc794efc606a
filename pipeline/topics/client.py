"""Kafka clients of the tools (not of the stream), and their errors turned into ours.

kafka-python administers; aiokafka reads (2 us a record where kafka-python takes 25, and every compression).

`settings` everywhere: the keyword arguments that reach the broker (`bootstrap_servers`, `security_protocol`, ...), as
`pipeline.config.Kafka.client_settings` gives them; a plain host:port text will do too.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from aiokafka.conn import create_conn
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.errors import BadInput, NarrowsError, TryAgain, Unreachable

Settings = Mapping[str, Any] | str

# What it logs, each retry an error with a trace, reaches the caller as one error.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

PROBE_TIMEOUT_MS = 5_000
PROBED = ("security_protocol", "ssl_context", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password")

REFUSED = {"AuthorizationError", "ClusterAuthorizationFailedError", "TopicAuthorizationFailedError"}
LOGON = {"SaslAuthenticationFailedError", "SaslAuthenticationFailed", "UnsupportedSaslMechanismError"}
NO_TOPIC = {"UnknownTopicOrPartitionError"}
SILENT = {"KafkaTimeoutError", "KafkaConnectionError", "NoBrokersAvailable", "OSError"}


def keywords(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of a kafka-python or aiokafka client."""
    return {"bootstrap_servers": settings} if isinstance(settings, str) else dict(settings)


def address(settings: Settings) -> str:
    """The broker's address, for a message."""
    servers = keywords(settings).get("bootstrap_servers", "")
    return servers if isinstance(servers, str) else ",".join(servers)


def ours(error: Exception, settings: Settings) -> NarrowsError:
    """Our error for one of kafka-python's or aiokafka's, told by name: the two have the same tree of errors each."""
    where = address(settings)
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & LOGON:
        return Unreachable(f"Kafka at {where} refused the log-on ({error}): check kafka.username and kafka.password")
    if names & REFUSED:
        return Unreachable(f"Kafka at {where} does not allow it ({error}): ask for the rights in docs/topics.md")
    if names & NO_TOPIC:
        return BadInput(f"Kafka at {where} has no such topic ({error}): make it with `narrows topics create`")
    if names & SILENT:
        return _silence(probe(settings) or error, settings)
    if getattr(error, "retriable", False):
        return TryAgain(f"Kafka at {where} could not do it just now ({error}): try again")
    return Unreachable(f"Kafka at {where} refused: {error}")


def _silence(reason: Exception, settings: Settings) -> NarrowsError:
    """Why no broker answers. The clients try again until their time is over and keep the reason to themselves."""
    where = address(settings)
    if LOGON & {kind.__name__ for kind in type(reason).__mro__}:
        return ours(reason, settings)
    if isinstance(reason, ssl.SSLError):
        return Unreachable(f"no TLS with Kafka at {where} ({reason}): check kafka.cafile, certfile and keyfile")
    if isinstance(reason, TimeoutError):
        protocol = keywords(settings).get("security_protocol", "PLAINTEXT")
        return Unreachable(
            f"{where} does not answer as Kafka over {protocol}: check kafka.bootstrap and kafka.security_protocol"
        )
    return Unreachable(
        f"no Kafka answers at {where} ({reason}): start one with `narrows local up`, or set kafka.bootstrap"
    )


def wait_for_broker(settings: Settings, patience_s: float) -> None:
    """Returns when a broker takes our log-on; a refused connection is tried again for `patience_s` (a restart).

    Raises Unreachable with what is wrong: nobody listens, another protocol, an unknown certificate, a wrong password.
    """
    deadline = time.monotonic() + patience_s
    while (reason := probe(settings)) is not None:
        error = _silence(reason, settings)
        passing = isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError | TimeoutError)
        if not passing or time.monotonic() > deadline:
            raise error from reason
        time.sleep(0.1)


def probe(settings: Settings) -> Exception | None:
    """One connection and log-on to each address: None when one of them succeeds, else what the last one raised."""
    given = keywords(settings)
    known = {name: given[name] for name in PROBED if name in given}

    async def connect() -> Exception | None:
        reason: Exception | None = None
        for server in address(settings).split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                connection = await create_conn(
                    host.strip("[]"), int(port), request_timeout_ms=PROBE_TIMEOUT_MS, **known
                )
            except Exception as error:  # whatever it is, it is the answer
                # aiokafka names the cause of a TLS failure in __cause__ alone
                reason = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
            else:
                connection.close()
                return None
        return reason

    with ThreadPoolExecutor(1) as thread:  # the caller's thread may run an event loop
        return thread.submit(asyncio.run, connect()).result()


@contextmanager
def admin_client(settings: Settings, patience_s: float = 2) -> Iterator[Any]:
    """An administrator, closed afterwards. Raises as `wait_for_broker` does, and our errors for Kafka's."""
    wait_for_broker(settings, patience_s)
    client = None
    try:
        client = KafkaAdminClient(**keywords(settings))
        yield client
    except (KafkaError, OSError) as error:
        raise ours(error, settings) from error
    finally:
        if client is not None:
            client.close()
