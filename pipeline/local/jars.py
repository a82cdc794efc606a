"""Kafka's jars: which ones (kafka.lock.json), where they lie, and that each is the one we locked.

Invariant: no jar goes onto the class path whose sha256 is not the lock's. Fetching is left to a standard Maven client:
`mvn` where the machine has it (it knows the user's mirrors and proxies), else the `jgo` package.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import msgspec

from pipeline.errors import Unreachable
from pipeline.local.machine import cache_folder, java_identity

LOCK = Path(__file__).with_name("kafka.lock.json")


class Jar(msgspec.Struct, frozen=True):
    """One locked file; `coordinate` is group:artifact:version, `bytes` its size."""

    coordinate: str
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        """The file's name in our folder."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"

    @property
    def path(self) -> str:
        """The file's path in a Maven repository."""
        group, artifact, version = self.coordinate.split(":")
        return f"{group.replace('.', '/')}/{artifact}/{version}/{self.name}"


class Lock(msgspec.Struct, frozen=True):
    """The lock file: Kafka's version, the coordinates that were resolved, and every jar that came of it."""

    kafka: str
    roots: list[str]
    jars: list[Jar]


@cache
def lock() -> Lock:
    """The committed lock."""
    return msgspec.json.decode(LOCK.read_bytes(), type=Lock)


def jar_folder() -> Path:
    """Where the jars of the locked version are kept."""
    return cache_folder() / f"kafka-{lock().kafka}"


def matches(file: Path, jar: Jar) -> bool:
    """True when `file` is there and is the locked jar, to the last bit."""
    return (
        file.is_file()
        and file.stat().st_size == jar.bytes
        and hashlib.sha256(file.read_bytes()).hexdigest() == jar.sha256
    )


def class_path(folder: Path | None = None, say: Callable[[str], None] = lambda line: None) -> str:
    """Kafka's class path, every jar verified; what is missing is fetched first.

    say : told in one line when a download begins.
    Raises Unreachable when a jar is missing and can't be fetched, or is not the locked one.
    """
    folder = folder or jar_folder()
    with ThreadPoolExecutor(4) as pool:
        good = list(pool.map(lambda jar: matches(folder / jar.name, jar), lock().jars))
    wanted = [jar for jar, right in zip(lock().jars, good, strict=True) if not right]
    altered = [folder / jar.name for jar in wanted if (folder / jar.name).exists()]
    if altered:
        raise Unreachable(
            f"{altered[0]} is not the jar that kafka.lock.json names (sha256 differs): delete it and call again"
        )
    if wanted:
        say(f"fetching {len(wanted)} jars of Kafka {lock().kafka}, {sum(jar.bytes for jar in wanted) / 1e6:.0f} MB")
        fetch(wanted, folder)
    return os.pathsep.join(str(folder / jar.name) for jar in lock().jars)


def archive_file(runtime: str, jars: str) -> Path:
    """Where the class archive of this Java runtime and class path lies, if it was made."""
    key = hashlib.sha256(f"{java_identity(runtime)}\n{jars}".encode()).hexdigest()[:16]
    return jar_folder() / f"classes-{key}.jsa"


def keep_archive(made: Path, file: Path) -> None:
    """Puts a class archive in its place, its sha256 beside it, which comes last."""
    arrived = file.with_name(f".{file.name}-{os.getpid()}")
    shutil.copyfile(made, arrived)
    digest = hashlib.sha256(arrived.read_bytes()).hexdigest()
    arrived.replace(file)
    file.with_suffix(".sha256").write_text(digest)


def class_archive(runtime: str, jars: str) -> list[str]:
    """The option that loads Kafka's classes from an archive: a broker is up in half of the time.

    Empty without an archive, or with one that is not what was written: a JVM crashes on a truncated one, or hangs.
    """
    file = archive_file(runtime, jars)
    try:
        whole = hashlib.sha256(file.read_bytes()).hexdigest() == file.with_suffix(".sha256").read_text()
    except OSError:
        return []
    return [f"-XX:SharedArchiveFile={file}"] if whole else []


def fetch(jars: Sequence[Jar], folder: Path) -> None:
    """Puts these jars into `folder`, each verified before it gets its name there.

    Raises Unreachable when the Maven client fails or hands out another file.
    """
    maven = shutil.which("mvn")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        came = by_maven(maven, jars, Path(name)) if maven else by_jgo(jars, Path(name))
        for jar, file in zip(jars, came, strict=True):
            if not matches(file, jar):
                raise Unreachable(
                    f"{jar.coordinate} came with another sha256 than kafka.lock.json names, and was not kept: "
                    "check the Maven mirror (and ~/.m2/repository) of this machine"
                )
            moved = Path(name, f"verified-{jar.name}")
            shutil.copyfile(file, moved)
            moved.replace(folder / jar.name)


def not_fetched(why: str) -> Unreachable:
    """The error of a fetch that failed."""
    return Unreachable(
        f"Kafka's jars can't be fetched ({why}): connect this machine to a Maven repository and run "
        f"`narrows local fetch`, or copy {jar_folder()} from a machine that has it, "
        "or point kafka.bootstrap at a Kafka of your own"
    )


def by_maven(maven: str, jars: Sequence[Jar], folder: Path) -> list[Path]:
    """Fetches with `mvn`, each jar by itself (nothing is resolved again); returns their paths in the order asked."""
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version>"
        "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions></dependency>"
        .format(*jar.coordinate.split(":"))
        for jar in jars
    )
    (folder / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>narrows</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )
    ran = subprocess.run(
        [maven, "-q", "-B", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies",
         f"-DoutputDirectory={folder / 'jars'}", "-Dmdep.useRepositoryLayout=true"],
        capture_output=True, text=True,
    )
    if ran.returncode:
        errors = [line.removeprefix("[ERROR] ") for line in ran.stdout.splitlines() if "[ERROR]" in line]
        raise not_fetched(f"mvn: {errors[0] if errors else ran.stderr.strip() or ran.returncode}")
    return [folder / "jars" / jar.path for jar in jars]


def by_jgo(jars: Sequence[Jar], folder: Path) -> list[Path]:
    """Fetches with `jgo`, four jars at a time; returns their paths in the order asked."""
    try:
        from jgo.maven import MavenContext
    except ImportError as error:
        raise not_fetched("neither `mvn` nor the package `jgo` is installed; `pip install 'narrows[local]'`") from error
    context = MavenContext(repo_cache=folder, timeout=60)

    def one(jar: Jar) -> Path:
        group, artifact, version = jar.coordinate.split(":")
        return Path(context.project(group, artifact).at_version(version).artifact(packaging="jar").resolve())

    try:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(one, jars))
    except Exception as error:  # jgo raises plain and requests' exceptions; all of them mean the same here
        raise not_fetched(f"jgo: {error}") from error
