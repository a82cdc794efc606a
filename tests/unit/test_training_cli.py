"""`narrows train`, `tune`, `evaluate`, `report` as a person types them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

pytest.importorskip("torch")

from pipeline.cli.main import app
from pipeline.errors import BadInput
from pipeline.registry.bundle import load_bundle
from training.cli import _Progress
from training.history import Epoch, History
from training.recipe import Recipe, parse_recipe


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 900 rows with a fault in rows 700 to 760, and a bundle trained on the first 600."""
    place = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    steps = np.arange(900)
    values = np.column_stack([np.sin(steps / 9), np.cos(steps / 9), rng.normal(size=900)])
    values += 0.05 * rng.normal(size=(900, 3))
    anomaly = ((steps >= 700) & (steps < 760)).astype(int)
    values[anomaly == 1, 1] += 4
    lines = ["ts;a;b;c;anomaly"]
    lines += [f"{1_700_000_000 + step};{row[0]:.4f};{row[1]:.4f};{row[2]:.4f};{bad}"
              for step, row, bad in zip(steps, values, anomaly, strict=True)]
    (place / "pump.csv").write_text("\n".join(lines) + "\n")
    call("train", place / "pump.csv", "--rows", "0:600", "--out", place / "bundle", "--window", 8, "--memory", 40,
         "--epochs", 3, "--set", "hidden=[16]", "--accept-shift", "--json")
    return place


def test_train_writes_a_bundle_with_card_report_and_every_setting(folder: Path) -> None:
    manifest = load_bundle(folder / "bundle").manifest
    assert manifest.recipe["epochs"] == 3
    assert manifest.recipe["hidden"] in ([16], (16,))
    assert (folder / "bundle" / "card.md").read_text().startswith(f"# dense {manifest.short}")
    page = (folder / "bundle" / "report" / "index.html").read_text()
    for name in ("loss.png", "rebuilt.png", "scores.png", "latent.png", "channels.png", "families.png"):
        assert (folder / "bundle" / "report" / name).read_bytes().startswith(b"\x89PNG")
        assert name in page
    assert not list(folder.glob("*.checkpoint"))


def test_evaluate_measures_the_fault(folder: Path) -> None:
    done = call("evaluate", folder / "pump.csv", "--bundle", folder / "bundle", "--rows", "600:",
                "--label-column", "anomaly", "--json")
    figures = json.loads(done.stdout)
    assert figures["average_precision"] > 0.7
    assert figures["label_share"] == pytest.approx(60 / 293, rel=0.1)


def test_report_draws_precision_and_recall_where_labels_are_given(folder: Path) -> None:
    call("report", folder / "bundle", folder / "pump.csv", "--label-column", "anomaly", "--out", folder / "pictures")
    assert (folder / "pictures" / "precision_recall.png").exists()
    assert (folder / "pictures" / "neighbours.png").exists()


def test_a_search_goes_on_from_its_journal_and_its_recipe_trains(folder: Path) -> None:
    common = ("tune", folder / "pump.csv", "--rows", "0:600", "--window", 8, "--epochs", 1, "--folds", 2, "--out",
              folder / "recipe.yaml", "--json")
    call(*common, "--trials", 1)
    done = call(*common, "--trials", 2)
    assert json.loads(done.stdout.splitlines()[-1])["trials"] == 2
    recipe = parse_recipe(yaml.safe_load((folder / "recipe.yaml").read_text()))
    assert recipe.epochs == Recipe().epochs


def test_a_search_that_was_killed_in_its_first_trial_begins_with_that_trial_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Killed(BaseException):
        """Ends the process in the middle of a trial, as kill -9 does: nothing may catch it."""

    def error_of(_: object, recipe: Recipe, *__: object) -> float:
        tried.append((recipe.rate, recipe.batch))
        if len(tried) == 1:
            raise Killed
        return float(len(tried))

    monkeypatch.setattr("training.tune._error", error_of)
    common = ("tune", folder / "pump.csv", "--rows", "0:600", "--window", 8, "--folds", 2, "--trials", 3, "--out",
              folder / "killed.yaml", "--json")
    with pytest.raises(Killed):
        call(*common)
    facts = json.loads(call(*common).stdout.splitlines()[-1])
    assert tried[1] == (Recipe().rate, Recipe().batch)
    assert (facts["trials"], facts["first"]) == (3, 2.5)              # two folds: the mean of 2 and 3
    assert len(set(tried)) == 3


def test_a_search_that_gains_nothing_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Recipe] = []

    def error_of(_: object, recipe: Recipe, *__: object) -> float:
        tried.append(recipe)
        return 1.0 if recipe.linear_path else 2.0

    monkeypatch.setattr("training.tune._error", error_of)
    done = call("tune", folder / "pump.csv", "--rows", "0:600", "--window", 8, "--folds", 2, "--trials", 12, "--out",
                folder / "equal.yaml")
    assert "did better than the ones it began with" in done.stdout
    assert {recipe.linear_path for recipe in tried} == {True, False}


@pytest.mark.parametrize(("options", "message"), [
    (("--set", "rat=1"), "rat"), (("--set", "rate"), "NAME=VALUE"), (("--model", "lstm"), "give one of dense"),
    (("--set", "rate=-1"), "recipe.rate"), (("--rows", "890:"), "rows"), (("--device-column", "x"), "no column"),
    ((), "--label-column anomaly"), (("--set", "rat=1"), "did you mean rate"), (("--nominal", "3"), "0.01 for 1 %"),
    (("--set", "loss=l2"), "recipe.loss is 'l2'; give one of mse, mae"), (("--set", "rate=fast"), "docs/training.md"),
    (("--alerts-per-device-week", "0"), "a rate over 0"), (("--epochs", "0"), "give 1 to 1048576"),
], ids=["setting", "no value", "family", "bad value", "too few rows", "no such column", "labelled rows", "near name",
        "share", "choice", "kind of value", "alert rate", "range"])
def test_what_can_not_be_done_is_said_with_what_to_do(folder: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        call("train", folder / "pump.csv", "--out", folder / "other", *options)
    assert error.value.exit_code == 3
    assert not (folder / "other").exists()


def test_a_resume_without_a_checkpoint_says_that_it_begins_anew(folder: Path) -> None:
    done = call("train", folder / "pump.csv", "--rows", "0:600", "--window", 8, "--set", "epochs=1", "--resume",
                "--no-report", "--accept-shift", "--out", folder / "anew")
    assert "anew.checkpoint to go on from: training begins anew" in done.stderr


def test_a_label_column_of_a_topic_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="a topic's rows have none"):
        call("train", "--from-topic", "readings", "--label-column", "anomaly", "--out", folder / "other")


@pytest.mark.parametrize("option", [("--rows", "0:10"), ("--label-column", "bad"), ("--window", "4")])
def test_an_example_takes_no_option_that_it_would_pass_over(option: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"digits is an example.*leave {option[0]} out"):
        call("train", "digits", "--model", "pca", "--out", tmp_path / "bundle", *option)


def test_a_report_on_an_example_knows_its_classes(tmp_path: Path) -> None:
    call("train", "digits", "--model", "pca", "--no-report", "--out", tmp_path / "bundle")
    call("report", tmp_path / "bundle", "digits", "--out", tmp_path / "pictures")
    told = re.search(r"rightly in: pca (\d+)", (tmp_path / "pictures" / "card.md").read_text())
    assert told is not None
    assert int(told[1]) > 80


def test_rows_that_are_mostly_anomalous_are_refused_though_nothing_says_which(folder: Path) -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(1200) / 20
    values = np.column_stack([np.sin(steps), np.cos(steps)]) + 0.2 * rng.normal(size=(1200, 2))
    values[300:, 1] += 12
    lines = ["ts,a,b"] + [f"{1_700_000_000 + at},{a:.4f},{b:.4f}" for at, (a, b) in enumerate(values)]
    (folder / "odd.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=r"most in b.*--trim"):
        call("train", folder / "odd.csv", "--model", "linear", "--out", folder / "odd")
    assert not (folder / "odd").exists()


def write(path: Path, rows: int = 300, **columns: np.ndarray) -> Path:
    """A file of two waves, one of them called b, and further columns or others in their place."""
    steps = np.arange(rows)
    all_columns: dict[str, np.ndarray] = {
        "ts": 1_700_000_000 + steps, "a": np.sin(steps / 7).round(3), "b": np.cos(steps / 9).round(3)} | columns
    path.write_text("\n".join([",".join(all_columns), *(
        ",".join(map(str, row)) for row in zip(*all_columns.values(), strict=True))]))
    return path


@pytest.mark.parametrize(("rows", "columns", "message"), [
    (20, {}, r"20 rows.*fewer than one window of 32.*--window"), (60, {}, r"give more rows.*--window"),
    (300, {"b": np.full(300, "inf")}, r"'b' has no value in any row: --ignore-columns b"),
    (300, {"target": np.arange(300) // 200}, r"'target' looks like a label.*--ignore-columns target"),
    (300, {"ts": 1_700_000_000 + np.arange(300) % 200}, r"time goes backwards.*first in row 200.*--device-column"),
], ids=["less than a window", "few windows", "all missing", "label among the channels", "time goes backwards"])
def test_rows_that_teach_nothing_are_refused_with_what_to_do(
    rows: int, columns: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message) as error:
        call("train", write(tmp_path / "pump.csv", rows, **columns), "--out", tmp_path / "bundle")
    assert error.value.exit_code == 3
    assert not (tmp_path / "bundle").exists()


TOO_FAST = ("--window", 16, "--set", "optimiser=sgd", "--set", "clip=0", "--set", "schedule=constant",
            "--set", "linear_path=false", "--epochs", 40, "--set", "patience=40", "--no-report", "--accept-shift")


def test_a_loss_that_is_no_number_names_the_command_that_goes_on(tmp_path: Path) -> None:
    rows = write(tmp_path / "pump.csv", 600)
    command = ("train", rows, "--out", tmp_path / "bundle", *TOO_FAST, "--set", "warmup_steps=2000")
    with pytest.raises(BadInput, match=r"batch \d+ of epoch|after epoch") as stopped:
        call(*command, "--set", "rate=100")
    assert stopped.value.exit_code == 3
    assert "of epoch" in str(stopped.value)
    assert (tmp_path / "bundle.checkpoint").exists()
    _, _, fix = str(stopped.value).partition("go on from there with ")
    assert fix.split() == ["--resume", "--set", "rate=10"]
    with pytest.raises(BadInput, match=r"another contract \(--window"):
        call(*command, *fix.split(), "--window", 8)
    other = write(tmp_path / "other.csv", 600, ts=1_800_000_000 + np.arange(600))
    with pytest.raises(BadInput, match="made from other rows"):
        call("train", other, *command[2:], *fix.split())
    call(*command, *fix.split())
    training = load_bundle(tmp_path / "bundle").manifest.training
    assert training["restarts"].endswith("rate was 100.0, is 10.0")
    assert training["epochs"] == 40


def test_a_loss_that_is_no_number_from_the_start_is_to_be_trained_again(tmp_path: Path) -> None:
    rows = write(tmp_path / "pump.csv", 600)
    with pytest.raises(BadInput, match=r"train again with --set rate=9$"):
        call("train", rows, "--out", tmp_path / "bundle", *TOO_FAST, "--set", "rate=90")
    assert not (tmp_path / "bundle.checkpoint").exists()


def test_a_channel_that_never_moves_is_told_and_kept(tmp_path: Path) -> None:
    done = call("train", write(tmp_path / "pump.csv", b=np.ones(300)), "--out", tmp_path / "bundle", "--model", "var",
                "--no-report")
    assert "'b' never moves" in done.stderr
    assert "--context-columns b" in done.stderr
    assert load_bundle(tmp_path / "bundle").contract.names == ("a", "b")


def test_a_number_that_stands_for_missing_values_is_told_with_the_option(tmp_path: Path) -> None:
    gone = np.arange(300) % 50 < 2
    a, b = np.sin(np.arange(300) / 7).round(3), np.cos(np.arange(300) / 9).round(3)
    marked = write(tmp_path / "pump.csv", a=np.where(gone, -200, a), b=np.where(gone, -200, b))
    options = ("--model", "var", "--no-report", "--accept-shift", "--out", tmp_path / "bundle")
    assert "-200 lies far from all other values of a, b" in call("train", marked, *options).stderr
    assert "-200" not in call("train", marked, *options, "--missing", "-200").stderr
    assert "lies far" not in call("train", write(tmp_path / "clean.csv"), *options).stderr


def test_a_column_without_a_value_is_told_and_left_out(tmp_path: Path) -> None:
    done = call("train", write(tmp_path / "pump.csv", b=np.full(300, "")), "--out", tmp_path / "bundle", "--model",
                "var", "--no-report")
    assert "no numbers, so no channels: b" in done.stderr
    assert load_bundle(tmp_path / "bundle").contract.names == ("a",)


def test_channels_that_differ_between_files_are_refused_by_name(tmp_path: Path) -> None:
    files = write(tmp_path / "one.csv"), write(tmp_path / "two.csv", c=np.arange(300))
    with pytest.raises(BadInput, match=r"two\.csv.*`c` is not in all files; --ignore-columns c"):
        call("train", *files, "--out", tmp_path / "bundle")


def test_a_loss_that_is_not_a_number_stops_at_its_batch_and_says_where_the_good_weights_are(tmp_path: Path) -> None:
    settings = [part for one in ("rate=3", "clip=0", "optimiser=sgd", "hidden=[16]") for part in ("--set", one)]
    with pytest.raises(BadInput, match=r"batch \d+ of epoch \d+.*recipe\.rate.*epoch \d+, are kept") as error:
        call("train", write(tmp_path / "pump.csv", 900), "--out", tmp_path / "bundle", *settings)
    assert error.value.exit_code == 3
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_does_not_fit_is_told_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"out of memory: lower recipe\.batch.*recipe\.hidden") as error:
        call("train", write(tmp_path / "pump.csv"), "--out", tmp_path / "bundle", "--set", "hidden=[1000000000000]")
    assert error.value.exit_code == 3


def test_a_file_without_time_is_refused_with_the_option_that_makes_one(folder: Path) -> None:
    (folder / "plain.csv").write_text("a,b\n" + "\n".join("1,2" for _ in range(50)))
    with pytest.raises(BadInput, match="--time-column none --step"):
        call("train", folder / "plain.csv", "--out", folder / "other")


def test_memory_that_runs_out_is_told_with_the_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("training.sources.in_memory", out_of_memory)
    with pytest.raises(BadInput, match="--memory-mb") as error:
        call("train", folder / "pump.csv", "--out", folder / "other")
    assert error.value.exit_code == 3


def test_the_line_of_progress_leaves_room_for_its_bar_on_80_columns() -> None:
    shown: dict[str, str] = {}

    class Bar:
        def update(self, _: object, *, completed: int, description: str, state: str) -> None:
            shown.update(description=description, state=state)

    progress = _Progress(Recipe(epochs=1000))
    progress._bar, progress._task = Bar(), None
    epoch = Epoch(number=1000, train=0.001234567, held_out=0.0001234567, rate=1e-3, seconds=1.0)
    progress(epoch, History(epochs=[epoch], best=1000, best_loss=0.0001234567))
    assert shown["description"] == "epoch 1000 of 1000"
    assert len(shown["description"]) + len(shown["state"]) + len(" " * 3 + "0:00:00") <= 80
