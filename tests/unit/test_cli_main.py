"""The root of the command line: errors, exit codes, and what it costs to start."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import config as config_commands
from pipeline.cli.main import COMMANDS, app, main
from pipeline.config import build_config, to_plain
from pipeline.errors import Unreachable

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NARROWS_CONFIG", raising=False)


def test_every_command_is_listed_with_its_line() -> None:
    shown = run(app, ["--help"], env={"COLUMNS": "200"}).output
    for name, place in COMMANDS.items():
        assert name in shown
        assert place.help in shown


def test_listing_the_commands_imports_none_of_them() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from pipeline.cli.main import app;"
        "CliRunner().invoke(app, ['--help']);"
        "heavy = ('numpy', 'pyarrow', 'kafka', 'faust', 'torch', 'onnxruntime');"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_deliberate_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["narrows", "config", "check", "--config", "none.yaml"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "none.yaml" in shown
    assert "narrows config init" in shown

    def fail(*args: object) -> None:
        raise Unreachable("no broker; start one")

    monkeypatch.setattr(config_commands, "load_config", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 4


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run(app, ["nosuch"]).exit_code == 2


def test_the_version_is_printed() -> None:
    assert re.fullmatch(r"narrows \d+\.\d+\.\d+\n", run(app, ["--version"]).output)


def test_the_written_file_is_valid_and_says_the_defaults() -> None:
    assert run(app, ["config", "init"]).exit_code == 0
    text = Path("narrows.yaml").read_text()
    assert run(app, ["config", "init"]).exit_code == 1  # BadInput, not written over
    Path("contract.json").write_text('{"channels": [{"name": "flow"}]}')
    told = re.sub(r"^( *)# (?=(\w+:( |$)|- \{|  - \{|channels:))", r"\1", text, flags=re.MULTILINE)
    told = re.sub(r"^ *contract: bundles.*\n", "", told, flags=re.MULTILINE)
    spoken = build_config(yaml.safe_load(told), {}, Path.cwd())
    bare = {"streams": {"pump": {
        "topic": "readings", "bundle": "bundles/pump", "contract": {"channels": [{"name": "flow"}, {"name": "valve"}]},
    }}}
    assert to_plain(spoken) == to_plain(build_config(bare, {}, Path.cwd()))


def test_the_configuration_is_shown_with_secrets_masked() -> None:
    shown = run(app, ["config", "show", "--json"], env={"NARROWS_KAFKA__PASSWORD": "hunter2"}).output
    assert json.loads(shown)["kafka"]["password"] == "***"
    assert yaml.safe_load(run(app, ["config", "show"]).output)["kafka"]["group"] == "narrows"


def test_the_check_names_the_streams() -> None:
    Path("narrows.yaml").write_text("streams: {pump: {topic: readings, contract: {channels: [{name: flow}]}}}")
    assert run(app, ["config", "check"]).output == "ok; streams: pump (readings)\n"
    assert json.loads(run(app, ["config", "check", "--json"]).output) == {"ok": True, "streams": ["pump"]}


def test_the_schema_is_json() -> None:
    assert json.loads(run(app, ["config", "schema"]).output)["$ref"] == "#/$defs/Config"
