"""Writes pipeline/local/kafka.lock.json: every jar that the embedded Kafka needs, by coordinate and sha256.

Run it after changing a version below: `python tools/lock_kafka.py`. Maven resolves the tree; what it finds is what
later fetches are held to, jar by jar.
"""

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

KAFKA = "4.1.2"
LOG4J = "2.25.3"
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J}",
    f"org.apache.logging.log4j:log4j-core:{LOG4J}",
)
LOCK = Path(__file__).parent.parent / "pipeline" / "local" / "kafka.lock.json"


def pom(coordinates: tuple[str, ...]) -> str:
    """A project file that depends on these coordinates and on what they ask for."""
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        for group, artifact, version in (coordinate.split(":") for coordinate in coordinates)
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>narrows</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )


def coordinate_of(jar: Path, root: Path) -> str:
    """group:artifact:version of a jar that lies in Maven's repository layout under `root`."""
    *group, artifact, version, _ = jar.relative_to(root).parts
    return f"{'.'.join(group)}:{artifact}:{version}"


def main() -> None:
    """Resolves the roots and writes the lock."""
    maven = shutil.which("mvn")
    if maven is None:
        raise SystemExit("lock_kafka: install Maven (package `maven`) first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pom.xml").write_text(pom(ROOTS))
        out = folder / "jars"
        subprocess.run(
            [maven, "-q", "-B", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies",
             f"-DoutputDirectory={out}", "-Dmdep.useRepositoryLayout=true"],
            check=True,
        )
        jars = [
            {
                "coordinate": coordinate_of(jar, out),
                "sha256": hashlib.sha256(jar.read_bytes()).hexdigest(),
                "bytes": jar.stat().st_size,
            }
            for jar in sorted(out.rglob("*.jar"))
        ]
    LOCK.write_text(json.dumps({"kafka": KAFKA, "roots": ROOTS, "jars": jars}, indent=1) + "\n")
    print(f"{LOCK.name}: Kafka {KAFKA}, {len(jars)} jars, {sum(jar['bytes'] for jar in jars) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
