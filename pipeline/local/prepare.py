"""What `narrows local` needs once, before it works offline: Kafka's jars, and an archive of Kafka's loaded classes."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.local.jars import archive_file, class_archive, class_path, keep_archive
from pipeline.local.kafka import LocalKafka
from pipeline.local.machine import java

DUMP_GRACE_S = 120


def prepare(say: Callable[[str], None]) -> None:
    """Fetches what is missing and makes the class archive; does nothing the second time.

    The archive comes from a broker that is started and stopped once. A runtime that can't write one (because it has no
    archive of its own classes) leaves none, and brokers start without.
    Raises Unreachable when something can't be fetched.
    """
    runtime, jars = java(), class_path(say=say)
    if class_archive(runtime, jars):
        return
    say("starting a broker once, so that later ones start in half of the time")
    with tempfile.TemporaryDirectory(prefix="narrows-classes-") as folder:
        made = Path(folder, "classes.jsa")
        with LocalKafka(
            Path(folder, "kafka"), jvm_options=[f"-XX:ArchiveClassesAtExit={made}"], grace_s=DUMP_GRACE_S
        ):
            pass
        if made.exists():
            keep_archive(made, archive_file(runtime, jars))
