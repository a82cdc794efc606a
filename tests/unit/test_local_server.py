"""A server never outlives the process that wanted it; a jar that is not the locked one is never used."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Unreachable
from pipeline.local import jars, machine
from pipeline.local.server import PORTS, Server, free_port
from tests.support.waiting import gone, until

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
DEAF = [
    sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


@pytest.fixture
def server(tmp_path):
    server = Server("sleeper", SLEEP, tmp_path / "log")
    yield server
    server.stop()


def test_a_stopped_server_is_gone(server):
    server.start()
    pid = server.pid
    server.stop()
    assert gone(pid)
    assert not server.running


def test_a_server_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    server = Server("deaf", DEAF, tmp_path / "log", grace_s=0.2)
    server.start()
    assert until(lambda: "up" in (tmp_path / "log").read_text())
    pid = server.pid
    server.stop()
    assert gone(pid)


def test_a_paused_server_can_be_stopped(server):
    server.start()
    pid = server.pid
    server.pause()
    server.stop()
    assert gone(pid)


def test_a_killed_server_can_be_started_again(server):
    server.start()
    first = server.pid
    server.kill()
    assert gone(first)
    server.start()
    assert server.running
    assert server.pid != first


def test_a_server_outlives_the_thread_that_started_it(server):
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.5)  # a parent-death signal of that thread would have come at once
    assert server.running


def test_killing_the_keeper_kills_the_server(server):
    server.start()
    pid = server.pid
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert until(lambda: gone(pid))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_parent(tmp_path, number):
    code = f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)    # ignored in what a shell runs in the background
        from pathlib import Path
        from pipeline.local.server import Server
        server = Server("sleeper", {SLEEP!r}, Path({str(tmp_path / "log")!r}))
        server.start()
        print(server.pid, flush=True)
        import time; time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    assert until(lambda: gone(pid))


def test_a_program_that_is_not_there_is_told_in_one_line(tmp_path):
    server = Server("ghost", [str(tmp_path / "ghost")], tmp_path / "log")
    with pytest.raises(Unreachable, match="ghost did not start"):
        server.start()


def test_waiting_for_a_server_that_ends_says_its_last_words(tmp_path):
    server = Server("short", [sys.executable, "-c", "print('ERROR no disk'); raise SystemExit(1)"], tmp_path / "log")
    server.start()
    with pytest.raises(Unreachable, match="ERROR no disk"):
        server.wait(lambda: False, 20)


def test_free_ports_lie_below_those_of_outgoing_connections():
    assert all(free_port() in PORTS for _ in range(20))


# --- what the machine has


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine without Java, Redis, Maven or wheels, and with an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    for name in ("JAVA_HOME", "NARROWS_JAVA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "wheel_file", lambda package, *path: None)
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    return tmp_path


def test_without_java_one_line_says_what_to_install(bare_machine):
    with pytest.raises(Unreachable, match="install one") as raised:
        machine.java()
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 4


def test_an_old_java_is_passed_over(bare_machine):
    old = bare_machine / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    with pytest.raises(Unreachable, match="version 17 or newer"):
        machine.java()


def test_without_redis_one_line_says_what_to_install(bare_machine):
    with pytest.raises(Unreachable, match="redis-server") as raised:
        machine.redis_server()
    assert "\n" not in str(raised.value)


def test_without_jars_and_a_way_to_fetch_them_one_line_says_what_to_do(bare_machine):
    with pytest.raises(Unreachable, match=r"neither `mvn` nor .*jgo") as raised:
        jars.class_path()
    assert "\n" not in str(raised.value)


# --- jars


@pytest.fixture
def one_jar(monkeypatch, tmp_path):
    """A lock of a single small jar, and the folder where it lies."""
    content = b"jar content"
    jar = jars.Jar("g.h:a:1", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(jars, "lock", lambda: jars.Lock("4.0", [], [jar]))
    (tmp_path / jar.name).write_bytes(content)
    return tmp_path / jar.name


def test_the_class_path_names_the_verified_jars_alone(one_jar):
    (one_jar.parent / "other.jar").write_bytes(b"not ours")
    assert jars.class_path(one_jar.parent) == str(one_jar)


@pytest.mark.parametrize("altered", [b"jar content!", b"Jar content", b""], ids=["longer", "one letter", "empty"])
def test_an_altered_jar_is_refused(one_jar, altered):
    one_jar.write_bytes(altered)
    with pytest.raises(Unreachable, match="sha256 differs"):
        jars.class_path(one_jar.parent)


def fake_maven(folder: Path, monkeypatch, content: str) -> None:
    """An `mvn` that hands out `content` for the jar."""
    program = folder / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\nfor word; do case $word in -DoutputDirectory=*) out=${word#*=};; esac; done\n"
        f"mkdir -p $out/g/h/a/1 && printf '{content}' > $out/g/h/a/1/a-1.jar\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_missing_jar_is_fetched_and_verified(one_jar, monkeypatch):
    one_jar.unlink()
    fake_maven(one_jar.parent, monkeypatch, "jar content")
    said = []
    jars.class_path(one_jar.parent, said.append)
    assert one_jar.read_bytes() == b"jar content"
    assert len(said) == 1


def test_a_jar_that_a_mirror_altered_is_never_kept(one_jar, monkeypatch):
    one_jar.unlink()
    fake_maven(one_jar.parent, monkeypatch, "jar kontent")
    with pytest.raises(Unreachable, match="another sha256"):
        jars.class_path(one_jar.parent)
    assert not one_jar.exists()
    assert not list(one_jar.parent.glob(".fetch-*"))


# --- the archive of loaded classes


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """A class archive for the runtime `java` and the class path `a.jar`."""
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path))
    file = jars.archive_file("java", "a.jar")
    file.parent.mkdir(parents=True)
    (tmp_path / "made").write_bytes(b"classes")
    jars.keep_archive(tmp_path / "made", file)
    return file


def test_a_whole_class_archive_is_used_and_one_for_other_jars_is_not(archive):
    assert jars.class_archive("java", "a.jar") == [f"-XX:SharedArchiveFile={archive}"]
    assert jars.class_archive("java", "b.jar") == []


@pytest.mark.parametrize("content", [b"class", b"Classes", b""], ids=["truncated", "altered", "empty"])
def test_a_broken_class_archive_is_left_alone(archive, content):
    archive.write_bytes(content)
    assert jars.class_archive("java", "a.jar") == []


def test_a_class_archive_without_its_sum_is_left_alone(archive):
    archive.with_suffix(".sha256").unlink()
    assert jars.class_archive("java", "a.jar") == []
