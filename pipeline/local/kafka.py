"""A real Apache Kafka (KRaft, 1 to N nodes) as child processes, for tests and for a machine without Docker.

Each node is broker and controller in one JVM, with three loopback listeners: CLIENT (what users and tests talk to, and
what a test of SASL or TLS reconfigures), INTERNAL (between brokers) and CONTROLLER. Ports, cluster id, data and logs
stay in one folder, so that a cluster started there again is the same one.
"""

import base64
import json
import socket
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.errors import BadInput, Unreachable
from pipeline.local.jars import class_archive, class_path
from pipeline.local.machine import java
from pipeline.local.server import Server, free_port

LOG4J = Path(__file__).with_name("log4j2.properties")
PORT_NAMES = ("client", "internal", "controller")
JVM = ("-XX:+UseSerialGC", "-Djava.awt.headless=true", f"-Dlog4j2.configurationFile=file:{LOG4J}")
# For the storage tool, which lives for a second: no second compiler.
JVM_SHORT = (*JVM, "-XX:TieredStopAtLevel=1", "-Xmx96m")


class Node:
    """One broker and controller of a `LocalKafka`."""

    def __init__(
        self, number: int, folder: Path, ports: Mapping[str, int], command: Sequence[str], grace_s: float
    ) -> None:
        self.number = number
        self.folder = folder
        self.ports = ports
        self.server = Server(f"Kafka node {number}", command, folder / "server.log", grace_s=grace_s)

    @property
    def address(self) -> str:
        """host:port of the CLIENT listener."""
        return f"127.0.0.1:{self.ports['client']}"

    @property
    def internal(self) -> str:
        """host:port of the INTERNAL listener, which stays plaintext."""
        return f"127.0.0.1:{self.ports['internal']}"

    @property
    def ready(self) -> bool:
        """True when this node answers as a broker of the cluster, unfenced."""
        return self.number in brokers(self.internal)

    def start(self, timeout_s: float = 120) -> None:
        """Starts it on its old data and ports, and waits until it answers."""
        self.server.start()
        self.server.wait(lambda: self.ready, timeout_s)

    def stop(self) -> None:
        """A clean stop: leadership handed over, logs closed."""
        self.server.stop()

    def kill(self) -> None:
        """kill -9."""
        self.server.kill()


def brokers(address: str) -> set[int]:
    """Node ids that the broker at `address` lists as alive; empty when it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()  # much cheaper to ask than a Kafka client
        admin = KafkaAdminClient(bootstrap_servers=address, request_timeout_ms=3000, bootstrap_timeout_ms=3000)
    except (KafkaError, OSError):
        return set()
    try:
        listed = admin.describe_cluster()["brokers"]
        return {broker["broker_id"] for broker in listed if not broker["is_fenced"]}
    except (KafkaError, OSError):
        return set()
    finally:
        admin.close()


class LocalKafka:
    """A cluster of `nodes` nodes under `folder`.

    properties : extra broker properties, over ours; `listener.security.protocol.map` and others for SASL and ACLs too.
    format_options : extra arguments of Kafka's storage tool, such as `--add-scram`.
    heap_mb : heap of each JVM; a node has about as much again outside of it.
    jvm_options : further options of each JVM.
    grace_s : time that a clean stop may take before a node is killed.
    say : told in one line about a download.

    >>> with LocalKafka(Path("/tmp/k")) as kafka:                      # doctest: +SKIP
    ...     produce_to(kafka.bootstrap)
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
        format_options: Sequence[str] = (),
        heap_mb: int = 384,
        jvm_options: Sequence[str] = (),
        grace_s: float = 10,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = folder.absolute()
        self.properties = dict(properties or {})
        self.format_options = list(format_options)
        self.grace_s = grace_s
        self.jvm_options = [f"-Xmx{heap_mb}m", *jvm_options]
        self.say = say
        self.size = nodes
        self.nodes: list[Node] = []
        self.cluster_id = ""

    @property
    def bootstrap(self) -> str:
        """Addresses of the CLIENT listeners, with commas between."""
        return ",".join(node.address for node in self.nodes)

    @property
    def running(self) -> bool:
        """True while every node's process lives."""
        return bool(self.nodes) and all(node.server.running for node in self.nodes)

    def start(self, timeout_s: float = 120) -> Self:
        """Starts all nodes, formatting new ones first; returns when each answers.

        Raises Unreachable with what to do when Java, a jar or a port is missing, or a node ends while starting.
        """
        for attempt in range(3):
            fresh = not self._cluster_file.exists()
            try:
                self._start(timeout_s)
            except BaseException as error:
                words = "".join(node.server.last_words() for node in self.nodes)
                self.stop()
                # Somebody took a port between our look and the broker's bind: a cluster without data takes others.
                if attempt < 2 and fresh and isinstance(error, Unreachable) and "Address already in use" in words:
                    self._cluster_file.unlink()
                    continue
                raise
            break
        return self

    def stop(self) -> None:
        """Stops the nodes one by one: cleanly while a majority can still agree to it, the rest by SIGKILL."""
        for node in reversed(self.nodes):
            alive = sum(other.server.running for other in self.nodes)
            if alive > self.size // 2:
                node.stop()
            else:
                node.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.stop()

    @property
    def _cluster_file(self) -> Path:
        return self.folder / "cluster.json"

    def _start(self, timeout_s: float) -> None:
        runtime, jars = java(), class_path(say=self.say)
        self.folder.mkdir(parents=True, exist_ok=True)
        cluster = self._identity()
        all_ports = cluster["ports"]
        self.cluster_id = cluster["id"]
        options = [*JVM, *class_archive(runtime, jars), *self.jvm_options]
        self.nodes = []
        for number, ports in enumerate(all_ports, start=1):
            folder = self.folder / f"node-{number}"
            crash = f"-XX:ErrorFile={folder / 'crash-%p.log'}"
            command = [runtime, *options, crash, "-cp", jars, "kafka.Kafka", str(folder / "server.properties")]
            self.nodes.append(Node(number, folder, ports, command, self.grace_s))
        for node in self.nodes:
            node.folder.mkdir(exist_ok=True)
            settings = self._settings(node, all_ports)
            lines = (f"{key}={value}\n" for key, value in settings.items())
            (node.folder / "server.properties").write_text("".join(lines))
        tool = [runtime, *JVM_SHORT, "-cp", jars, "kafka.tools.StorageTool"]
        self._format([*tool, "format", f"--cluster-id={self.cluster_id}"])  # one word: an id may begin with a dash
        for node in self.nodes:
            node.server.start()
        for node in self.nodes:
            node.start(timeout_s)

    def _identity(self) -> dict[str, Any]:
        """Cluster id and ports: those of the folder, else new ones that are kept there."""
        if self._cluster_file.exists():
            cluster: dict[str, Any] = json.loads(self._cluster_file.read_text())
            if len(cluster["ports"]) != self.size:
                raise BadInput(
                    f"{self.folder} holds a cluster of {len(cluster['ports'])} nodes, not {self.size}: "
                    "give another folder, or delete this one"
                )
            return cluster
        cluster = {
            "id": base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode(),
            "ports": [{name: free_port() for name in PORT_NAMES} for _ in range(self.size)],
        }
        self._cluster_file.write_text(json.dumps(cluster))
        return cluster

    def _settings(self, node: Node, all_ports: Sequence[Mapping[str, int]]) -> dict[str, str]:
        """server.properties of one node."""
        copies = min(self.size, 3)
        in_sync = 2 if self.size >= 3 else 1
        voters = [f"{number}@127.0.0.1:{ports['controller']}" for number, ports in enumerate(all_ports, start=1)]
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INTERNAL",
            "listeners": ",".join(f"{name.upper()}://127.0.0.1:{node.ports[name]}" for name in PORT_NAMES),
            "advertised.listeners": f"CLIENT://{node.address},INTERNAL://{node.internal}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(node.folder / "data"),
            # Topics are made on purpose, with the partitions that they need.
            "auto.create.topics.enable": "false",
            # Recorded data keep their old timestamps: a retention by time would delete them minutes after a replay.
            "log.retention.ms": "-1",
            # Tests send records from wrong clocks; the broker refuses those an hour ahead by default.
            "log.message.timestamp.after.max.ms": str(2**63 - 1),
            "num.partitions": "1",
            "default.replication.factor": str(copies),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(copies),
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": str(in_sync),
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": str(in_sync),
            "share.coordinator.state.topic.num.partitions": "4",
            # A group starts at once, and a dead member may be told after a second.
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # 128 MB of the heap by default; nothing here has that many keys.
            "log.cleaner.dedupe.buffer.size": str(16 * 2**20),
            **self.properties,
        }

    def _format(self, command: Sequence[str]) -> None:
        """Formats the nodes that are new, side by side."""
        new = [node for node in self.nodes if not (node.folder / "data" / "meta.properties").exists()]
        running = [
            subprocess.Popen(
                [*command, "-c", str(node.folder / "server.properties"), *self.format_options],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for node in new
        ]
        for node, process in zip(new, running, strict=True):
            said, _ = process.communicate(timeout=120)
            if process.returncode:
                raise Unreachable(f"Kafka node {node.number} could not be formatted: {said.strip()[-300:]}")
