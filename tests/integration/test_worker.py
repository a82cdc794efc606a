"""A worker on a real broker writes what the oracle says, no more and no less."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from pipeline import topics
from pipeline.cli.explain import find_alert, score_again
from pipeline.cli.main import app
from pipeline.config import load_config
from pipeline.sinks import Anomaly, Score, read_anomaly, read_score
from tests.support.logs import make_log, poisoned
from tests.support.models import small_contract, write_small_bundle
from tests.support.world import World, until

# The bound is zero so that blocks give back every bit and compare with the oracle's.
CONTRACT = small_contract(channels=3)


def lossless() -> Any:
    return msgspec.structs.replace(
        CONTRACT, channels=tuple(msgspec.structs.replace(channel, bound=0.0) for channel in CONTRACT.channels)
    )


@pytest.fixture
def world(kafka: Any, tmp_path: Path) -> Any:
    contract = lossless()
    bundles = [write_small_bundle(tmp_path / f"b{seed}", contract, seed, 0.7) for seed in range(3)]
    made = World(tmp_path, kafka.bootstrap, contract, bundles)
    yield made
    made.close()


def test_outputs_on_a_real_broker_equal_the_oracle(world: World) -> None:
    world.produce([make_log(1), make_log(2)])
    child = world.start()
    world.wait()
    assert world.stop(child) == 0
    totals = world.check()
    assert totals["repeated"] == 0
    for anomaly in some_alerts(world):
        result = CliRunner().invoke(app, ["explain", anomaly.id, "--config", str(world.path), "--json"])
        assert result.exit_code == 0, result.output
        told = json.loads(result.output)
        assert told["same"]
        assert told["again"]["contributions"] == pytest.approx(anomaly.contributions, rel=1e-5)
        assert anomaly.margin.keys() == anomaly.expected.keys()
        assert all(margin > 0 for margin in anomaly.margin.values())
        nearest = told["again"]["nearest_normal"]
        assert nearest is None or nearest["offset"] < anomaly.trigger
    check_that_an_older_bundles_alert_comes_back(world, anomaly)


def check_that_an_older_bundles_alert_comes_back(world: World, anomaly: Anomaly) -> None:
    """The champion changes: the alert's own bundle still gives its score, to the bit, and the new one another."""
    world.promote(1)
    command = ["explain", anomaly.id, "--config", str(world.path), "--json"]
    told = json.loads(CliRunner().invoke(app, command).output)
    assert told["same"]
    assert told["again"]["digest"] == anomaly.digest == world.bundles[0].digest
    assert told["again"]["score"] == anomaly.score
    tree = load_config(world.path)
    partition, _ = find_alert(tree, anomaly.id)
    newer, _ = score_again(tree, partition, msgspec.structs.replace(anomaly, digest=world.bundles[1].digest))
    assert newer is not None
    assert newer["score"] != anomaly.score
    shutil.rmtree(world.registry.path("pump", anomaly.digest))
    done = CliRunner().invoke(app, command)
    assert "put it back there" in str(done.exception)


def test_a_worker_without_a_bundle_says_so_of_each_row_and_takes_the_first_champion(kafka: Any, tmp_path: Path) -> None:
    contract = lossless()
    bundles = [write_small_bundle(tmp_path / "b0", contract, 0, 0.7)]
    world = World(tmp_path, kafka.bootstrap, contract, bundles, partitions=1, has_champion=False)
    log = make_log(8, 1_500)

    def told() -> list[Score]:
        read = topics.read_topic(world.bootstrap, f"{world.prefix}narrows.scores")
        return [read_score(record.value or b"") for _, record in read]

    sent = iter(range(400, len(log), 20))

    def moves_on() -> bool:
        at = next(sent)
        world.produce([log[at : at + 20]])
        return any(one.score is not None for one in told())

    try:
        world.produce([log[:400]])
        child = world.start()
        world.wait()
        rows = [one for one in log[:400] if one.values is not None]
        unscored = told()
        assert {(one.score, one.reason, one.digest) for one in unscored} == {(None, "no_model", "none")}
        assert len(unscored) > 0.9 * len(rows), "all but repeats"
        world.promote(0)
        until(moves_on, 60, "a score")
        assert world.stop(child) == 0
        (found,) = world.read()
        assert found.conflicts == 0
        assert len(found.outputs.blocks) > 10
        digests = [one.digest for one in sorted(told(), key=lambda one: one.offset)]
        assert digests == sorted(digests, key=lambda digest: digest != "none"), "from one offset on"
    finally:
        world.close()


def some_alerts(world: World) -> list[Anomaly]:
    """An opened, an updated and a late alert, where there are such."""
    found = {}
    for _, record in topics.read_topic(world.bootstrap, f"{world.prefix}narrows.anomalies"):
        anomaly = read_anomaly(record.value or b"")
        if anomaly.contributions:
            found[anomaly.state, anomaly.lane] = anomaly
    assert len(found) >= 3
    return list(found.values())


def test_a_restart_goes_on_where_the_commit_stands(world: World) -> None:
    logs = [make_log(3), make_log(4)]
    world.produce([log[:700] for log in logs])
    child = world.start()
    world.wait()
    assert world.stop(child) == 0
    world.produce([log[700:] for log in logs])
    child = world.start()
    world.wait()
    assert world.stop(child) == 0
    world.check()


def test_what_an_idle_partition_has_open_is_written_once_as_provisional_until_the_log_goes_on(
    kafka: Any, tmp_path: Path
) -> None:
    contract = msgspec.structs.replace(lossless(), max_gap_ms=2_000, allowance_ms=500)
    bundles = [write_small_bundle(tmp_path / "b0", contract, 0, 0.7)]
    world = World(tmp_path, kafka.bootstrap, contract, bundles, partitions=1, worker={"idle_after_s": 0.2})
    log = make_log(7, 500)

    def provisional() -> list[tuple[str, str, Any]]:
        return world.read()[0].provisional

    try:
        for stretch in (log[:300], log[300:320], log[320:]):
            before = len(provisional())
            world.produce([stretch])
            if not world.workers:
                world.start()
            world.wait()
            until(lambda before=before: len(provisional()) > before, 60, "provisional outputs")
        assert world.stop(world.workers[0]) == 0
        totals = world.check()
        assert totals["repeated"] == 0
        told = [(kind, name, content) for kind, name, content in provisional() if kind == "block"]
        assert len(set(told)) == len(told)
        assert {kind for kind, *_ in provisional()} >= {"block", "features"}
    finally:
        world.close()


def test_poison_goes_to_the_dead_letters_and_costs_only_itself(world: World) -> None:
    world.produce([poisoned(make_log(5)), make_log(6)])
    child = world.start()
    world.wait()
    assert world.stop(child) == 0
    world.check()
