"""Recorded files: what is read, what is guessed and said, and which option a refusal names."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.errors import BadInput
from pipeline.formats import Reason
from pipeline.formats.files import FIRST_MS, FileOptions, parse_rows, read_table, read_tables, split_columns

START = 1_583_748_873_000  # 2020-03-09 10:14:33 UTC


def write(folder: Path, text: str, name: str = "pump.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_separator(tmp_path: Path, separator: str) -> None:
    text = "ts,flow,heat\n2020-03-09 10:14:33,1.5,2\n2020-03-09T10:14:34Z,,3\n".replace(",", separator)
    table = read_table(write(tmp_path, text))
    assert (table.devices, table.channels) == (("pump",), ("flow", "heat"))
    assert table.ts_ms.tolist() == [START, START + 1000]
    np.testing.assert_array_equal(table.values, np.array([[1.5, 2], [np.nan, 3]], np.float32))


def test_decimal_commas_are_understood_and_said(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "ts;flow\n2020-03-09 10:14:33;1,5\n2020-03-09 10:14:34;-2\n"))
    assert table.values[:, 0].tolist() == [1.5, -2]
    assert "decimal comma" in table.notes


@pytest.mark.parametrize(
    ("header", "row", "columns"),
    [
        ("date,time,x", "2020-03-09,10:14:33,1", ()),
        ("day,hour,x", "2020-03-09,10:14:33,1", ("day", "hour")),
        ("day,hour,x", "2020/3/9,10:14:33,1", ("day", "hour")),
        ("Timestamp,x", "2020-03-09T10:14:33Z,1", ()),
        ("timestamp,x", "2020-03-09T11:14:33+01:00,1", ()),
        ("ts,x", f"{START},1", ()),
        ("ts,x", f"{START // 1000},1", ()),
        ("ts,x", f"{START / 1000},1", ()),
        ("ts,x", f"{START * 1000},1", ()),
        ("ts,x", f"{START * 1000_000},1", ()),
    ],
)
def test_times_in_every_form(tmp_path: Path, header: str, row: str, columns: tuple[str, ...]) -> None:
    table = read_table(write(tmp_path, f"{header}\n{row}\n"), FileOptions(time_columns=columns))
    assert table.ts_ms.tolist() == [START]
    assert table.channels == ("x",)


def test_a_unit_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path, "t,x\n0,1\n3,2\n")
    table = read_table(path, FileOptions(time_columns=("t",), time_unit="s"))
    assert table.ts_ms.tolist() == [0, 3000]


def test_times_are_made_per_device(tmp_path: Path) -> None:
    path = write(tmp_path, "id,x\na,1\nb,2\na,3\na,4\nb,5\n")
    table = read_table(path, FileOptions(time_columns=("none",), step_s=30, device_column="id"))
    assert table.devices == ("a", "b")
    assert ((table.ts_ms - FIRST_MS) // 1000).tolist() == [0, 0, 30, 60, 30]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("x,y\n1,2\n", FileOptions(), ["--time-column", "--step", "x, y"]),
        ("x,y\n1,2\n", FileOptions(time_columns=("none",)), ["--step"]),
        ("x,y\n1,2\n", FileOptions(time_columns=("z",)), ["`z`", "x, y"]),
        ("ts,x\n5,2\n", FileOptions(), ["--time-unit", "5"]),
        ("ts,x\nnoon,2\n", FileOptions(), ["row 0", "'noon'", "ISO 8601"]),
        ("ts,x\n2020-03-09,2\n,3\n", FileOptions(), ["row 1", "no time"]),
        ("ts,x\n2020-03-09,2\n2020-03-10,3\n2020-03-11,bad\n", FileOptions(), ["`x`", "'bad'", "--ignore-columns x"]),
        ("ts,x\n2020-03-09,red\n", FileOptions(), ["no column of numbers"]),
        ("ts,x\n2020-03-09,1\n", FileOptions(ignore_columns=("y",)), ["no column `y`"]),
        ("ts,x\n2020-03-09,1\n", FileOptions(context_columns=("x",)), ["no column of numbers is left to score"]),
        ("ts,x,k\n2020-03-09,1,a\n", FileOptions(context_columns=("k",)), ["`k`", "--context-columns"]),
        ("ts,x,x\n2020-03-09,1,2\n", FileOptions(), ["twice"]),
        ("ts,x,id\n2020-03-09,1,\n", FileOptions(device_column="id"), ["row 0", "no device"]),
        ("ts,x\n2020-03-09,1\n", FileOptions(channels=("x", "y")), ["`y`", "contract"]),
        ("1,2\n3,4\n", FileOptions(), ["names is needed"]),
        ("", FileOptions(), ["empty"]),
        ("ts,x\n", FileOptions(), ["no rows"]),
        ("ts,x\n2020-03-09,1\n2020-03-10\n", FileOptions(), ["can't be read"]),
    ],
)
def test_a_refusal_names_what_helps(tmp_path: Path, text: str, options: FileOptions, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        read_table(write(tmp_path, text), options)
    for word in ["pump.csv" if "--step" not in words[0] else "--step", *words]:
        assert word in str(caught.value)


def test_a_label_is_never_a_feature_unless_said_so(tmp_path: Path) -> None:
    path = write(tmp_path, "ts,x,anomaly,state\n2020-03-09,1,0,2\n2020-03-10,2,1,2\n")
    table = read_table(path, FileOptions(ignore_columns=("state",)))
    assert table.channels == ("x",)
    assert table.labels["anomaly"].tolist() == [0, 1]
    assert table.labels["state"].tolist() == [2, 2]
    assert any("anomaly" in note for note in table.notes)
    table = read_table(path, FileOptions(context_columns=("anomaly",)))
    assert (table.channels, table.context) == (("x", "anomaly", "state"), ("anomaly",))


def test_rows_that_the_stream_would_refuse_say_why(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "ts,x,y\n2020-03-09,1,2\n2020-03-10,,\n2020-03-11,1e39,2\n2020-03-12,inf,2\n"))
    assert table.reason.tolist() == [0, Reason.NO_CHANNEL, Reason.OVERFLOW, Reason.OVERFLOW]
    assert not np.isinf(table.values).any()


def test_parquet_and_json_lines_give_the_same_table(tmp_path: Path) -> None:
    values = [{"flow": 1.5 * i, "heat": None if i else 2.0} for i in range(3)]
    rows = [{"device": "a", "ts": START + i * 1000, "values": value} for i, value in enumerate(values)]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl")
    lines = read_table(path)
    flat = pa.table({
        "device": ["a"] * 3, "ts": pa.array([row["ts"] for row in rows], pa.timestamp("ms", "UTC")),
        "flow": [0.0, 1.5, 3.0], "heat": [2.0, None, None],
    })
    pa.parquet.write_table(flat, tmp_path / "rows.parquet")
    parquet = read_table(tmp_path / "rows.parquet", FileOptions(device_column="device"))
    assert lines.devices == parquet.devices == ("a",)
    assert lines.channels == parquet.channels == ("flow", "heat")
    assert lines.ts_ms.tolist() == parquet.ts_ms.tolist()
    assert lines.values.tobytes() == parquet.values.tobytes()


def test_several_files_are_one_table_of_several_devices(tmp_path: Path) -> None:
    one = write(tmp_path, "ts,x,y\n2020-03-09,1,2\n", "one.csv")
    two = write(tmp_path, "ts,y,x\n2020-03-10,20,10\n", "two.csv")
    table = read_tables([one, two])
    assert (table.devices, table.device.tolist()) == (("one", "two"), [0, 1])
    np.testing.assert_array_equal(table.values, np.array([[1, 2], [10, 20]], np.float32))
    with pytest.raises(BadInput, match="`z`"):
        read_tables([one, write(tmp_path, "ts,x,y,z\n2020-03-09,1,2,3\n", "three.csv")])


def test_files_of_one_name_keep_their_folders_apart(tmp_path: Path) -> None:
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "ts,x\n2020-03-09,1\n", "0.csv")
    assert read_tables([tmp_path / "left/0.csv", tmp_path / "right/0.csv"]).devices == ("left/0", "right/0")


def test_a_contract_chooses_and_orders_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "ts,x,y,z\n2020-03-09,1,2,3\n")
    table = read_table(path, FileOptions(channels=("z", "x")))
    assert table.values.tolist() == [[3, 1]]
    assert table.take(slice(0, 0)).values.shape == (0, 2)


def test_a_wrong_suffix_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(BadInput, match=r"\.parquet"):
        read_table(write(tmp_path, "x", "pump.xlsx"))
    with pytest.raises(BadInput, match="can't be read"):
        read_table(write(tmp_path, "x", "pump.parquet"))


def test_names_are_split_at_commas() -> None:
    assert split_columns(["a, b", "c", ""]) == ("a", "b", "c")


def test_rows_and_missing_values_can_be_named(tmp_path: Path) -> None:
    days = [f"2020-03-{day:02d},{-200 if day == 3 else day}\n" for day in range(1, 9)]
    path = write(tmp_path, "ts,x\n" + "".join(days))
    table = read_table(path, FileOptions(rows=parse_rows("1:4"), missing=-200))
    np.testing.assert_array_equal(table.values[:, 0], np.array([2, np.nan, 4], np.float32))
    assert len(read_table(path, FileOptions(rows=parse_rows("6:")))) == 2
    with pytest.raises(BadInput, match="--rows"):
        read_table(path, FileOptions(rows=parse_rows("9:")))
    with pytest.raises(BadInput, match="FIRST:LAST"):
        parse_rows("400")
