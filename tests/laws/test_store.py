"""The registry's invariant: the pointer names a whole bundle at every moment; revisions and tokens only grow."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import BadBundle, BadInput
from pipeline.registry.store import DamagedPointer, Registry, Superseded
from tests.support.small_bundle import write_small_bundle

Publish = Callable[[int], str]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Publish:
    return lambda seed: registry.publish("pump", write_small_bundle(tmp_path / f"bundle{seed}", seed).folder)


def test_a_published_bundle_lies_under_its_digest_and_is_no_champion_yet(registry, publish):
    digest = publish(1)
    registry.verify("pump", digest)
    assert registry.digests("pump") == [digest]
    assert registry.champion("pump") is None
    assert not [path for path in (registry.root / "pump").iterdir() if path.name.startswith(".incoming")]


def test_publishing_the_same_bundle_twice_changes_nothing(registry, publish):
    assert publish(1) == publish(1)
    assert len(registry.digests("pump")) == 1


def test_a_half_written_or_altered_bundle_is_not_published(registry, tmp_path):
    folder = write_small_bundle(tmp_path / "bundle").folder
    (folder / "model.onnx").write_bytes(b"no real mode")
    with pytest.raises(BadBundle):
        registry.publish("pump", folder)
    assert registry.digests("pump") == []


def test_a_bundle_altered_after_publishing_is_not_promoted_and_the_old_champion_stays(registry, publish):
    first, second = publish(1), publish(2)
    standing = registry.promote("pump", first, now_ms=1)
    (registry.path("pump", second) / "scaling.npz").write_bytes(b"")
    with pytest.raises(BadBundle):
        registry.promote("pump", second, now_ms=2)
    assert registry.champion("pump") == standing


@pytest.mark.parametrize("cut", range(0, 300, 7))
def test_a_pointer_cut_anywhere_is_refused(registry, publish, cut):
    registry.promote("pump", publish(1), now_ms=1)
    path = registry.root / "pump" / "champion.json"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedPointer):
        registry.champion("pump")


def test_a_pointer_with_one_changed_digit_is_refused(registry, publish):
    pointer = registry.promote("pump", publish(1), now_ms=1)
    path = registry.root / "pump" / "champion.json"
    other = "0" if pointer.digest[0] != "0" else "1"
    path.write_text(path.read_text().replace(pointer.digest, other + pointer.digest[1:]))
    with pytest.raises(DamagedPointer, match="checksum"):
        registry.champion("pump")


def test_a_pointer_of_a_newer_format_is_refused_with_advice(registry, publish):
    registry.promote("pump", publish(1), now_ms=1)
    path = registry.root / "pump" / "champion.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DamagedPointer, match="upgrade"):
        registry.champion("pump")


def test_a_promotion_mends_a_damaged_pointer_and_goes_on_from_its_history(registry, publish):
    first, second = publish(1), publish(2)
    registry.promote("pump", first, now_ms=1, token=7)
    (registry.root / "pump" / "champion.json").write_bytes(b"{")
    with pytest.raises(Superseded):
        registry.promote("pump", second, now_ms=2, token=7)
    pointer = registry.promote("pump", second, now_ms=2, token=8)
    assert (pointer.revision, pointer.previous) == (2, first)
    assert registry.champion("pump") == pointer


def test_an_older_or_equal_token_is_refused(registry, publish):
    first, second = publish(1), publish(2)
    standing = registry.promote("pump", first, now_ms=1, token=5)
    for token in (4, 5):
        with pytest.raises(Superseded, match="fencing token"):
            registry.promote("pump", second, now_ms=2, token=token)
    assert registry.champion("pump") == standing


def test_a_champion_that_moved_meanwhile_refuses_the_challenger(registry, publish):
    first, second, third = publish(1), publish(2), publish(3)
    registry.promote("pump", first, now_ms=1)
    registry.promote("pump", second, now_ms=2)
    with pytest.raises(Superseded, match="revision 1 to 2"):
        registry.promote("pump", third, now_ms=3, token=99, expected_revision=1)
    assert registry.champion("pump").digest == second


def test_promoting_the_champion_again_changes_nothing(registry, publish):
    standing = registry.promote("pump", publish(1), now_ms=1, token=5)
    assert registry.promote("pump", publish(1), now_ms=2, token=5) == standing


def test_rollback_goes_back_one_champion_each_time(registry, publish):
    first, second, third = publish(1), publish(2), publish(3)
    for place, digest in enumerate((first, second, third)):
        registry.promote("pump", digest, now_ms=place)
    assert registry.rollback("pump", now_ms=4).digest == second
    assert registry.rollback("pump", now_ms=5).digest == first
    with pytest.raises(BadInput, match="no earlier champion"):
        registry.rollback("pump", now_ms=6)
    assert [pointer.revision for pointer in registry.history("pump")] == [1, 2, 3, 4, 5]


def test_prune_keeps_what_a_commit_names_the_champion_its_forerunners_and_what_is_new(registry, publish):
    digests = [publish(seed) for seed in range(6)]
    for place, digest in enumerate(digests[:4]):
        registry.promote("pump", digest, now_ms=place)
        os.utime(registry.path("pump", digest), (0, 0))
    os.utime(registry.path("pump", digests[4]), (0, 0))
    leftover = registry.root / "pump" / ".incoming-dead"
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    now_ms = int(registry.path("pump", digests[5]).stat().st_mtime * 1000) + 1000
    rule = {"named": {digests[0][:12]}, "now_ms": now_ms, "keep_last": 2, "min_age_s": 60}
    assert registry.unneeded("pump", **rule) == sorted([digests[1], digests[4]])
    assert len(registry.digests("pump")) == 6
    removed = registry.prune("pump", **rule)
    assert removed == sorted([digests[1], digests[4]])
    assert registry.digests("pump") == sorted([digests[0], digests[2], digests[3], digests[5]])
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 101])
def test_a_stream_name_that_is_no_plain_folder_name_is_refused(registry, name):
    with pytest.raises(BadInput, match="stream name"):
        registry.champion(name)


def test_a_shortened_digest_finds_its_one_bundle(registry, publish):
    digest = publish(1)
    assert registry.find("pump", digest[:6].upper()) == digest
    for prefix in (digest[:3], "ffffffff" if digest[0] != "f" else "00000000"):
        with pytest.raises(BadInput):
            registry.find("pump", prefix)


KILLER = """
import os, signal, sys
from pathlib import Path
import pipeline.registry.store as store
steps = int(sys.argv[3])
count = 0
def counted(work):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **kwargs)
    return call
store._flush = counted(store._flush)
store._replace = counted(store._replace)
store.Path.rename = counted(store.Path.rename)
registry = store.Registry(sys.argv[1])
registry.promote("pump", registry.publish("pump", Path(sys.argv[2])), now_ms=2, token=2)
"""


def test_a_kill_at_any_step_of_publish_and_promote_leaves_a_whole_champion(registry, publish, tmp_path):
    first = publish(1)
    registry.promote("pump", first, now_ms=1, token=1)
    challenger = write_small_bundle(tmp_path / "challenger", 2)
    for step in range(1, 60):
        done = subprocess.run(
            [sys.executable, "-c", KILLER, str(registry.root), str(challenger.folder), str(step)], timeout=60,
            cwd=Path(__file__).parents[2],
        )
        pointer = registry.champion("pump")
        assert pointer.digest in (first, challenger.digest)
        registry.verify("pump", pointer.digest)
        if pointer.digest == challenger.digest:
            break
        assert done.returncode == -signal.SIGKILL
    assert pointer.digest == challenger.digest
    assert registry.promote("pump", challenger.digest, now_ms=3, token=2) == pointer
    assert [stood.revision for stood in registry.history("pump")] == [1, 2]
