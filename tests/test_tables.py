"""Files of prompts as people really write them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from sd_mlflow.tables import InputRow, count, read


def cells(path: Path) -> list[dict[str, object]]:
    rows = list(read(path))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert all(row.error is None for row in rows)
    return [row.cells for row in rows]


ROWS = [
    {"text_prompt": 'a cat, a "dog"\nand a horse', "seed": 5, "guidance_scale": 3.5},
    {"text_prompt": "x" * 10_000, "seed": 6, "guidance_scale": 7.5},
    {"text_prompt": "🐎 مرحبا ../../etc", "seed": 7, "guidance_scale": 1.0},
]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"prompts.{ending}"
    frame = pd.DataFrame(ROWS)
    if ending == "csv":
        frame.to_csv(path, index=False, encoding="utf-8-sig")
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        frame.to_parquet(path)
    assert cells(path) == ROWS


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_empty_cells_are_left_out(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"prompts.{ending}"
    frame = pd.DataFrame({"prompt": ["a", None], "seed": [None, 3], "return_metadata": [True, None]})
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    nothing = "" if ending == "csv" else None
    assert cells(path) == [{"prompt": "a", "return_metadata": True}, {"prompt": nothing, "seed": 3}]


def test_a_cell_that_is_not_its_type_is_left_for_validation_to_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("text_prompt,seed,guidance_scale\na,many,high\n")
    assert cells(path) == [{"text_prompt": "a", "seed": "many", "guidance_scale": "high"}]


def test_a_broken_line_is_that_row_s_error(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text_prompt": "a"}\n{"text_prompt": \n[1]\n{"text_prompt": "b"}\n')
    first, second, third, fourth = read(path)
    assert (first.cells, fourth.cells) == ({"text_prompt": "a"}, {"text_prompt": "b"})
    assert "not JSON" in (second.error or "")
    assert third == InputRow(2, error="the line must be a JSON object, got [1]")


def test_a_row_with_too_many_or_too_few_cells_is_that_row_s_error(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("text_prompt,seed\na,1\nb\nc,1,2\nd,4\n")
    rows = list(read(path))
    assert [row.error is None for row in rows] == [True, False, False, True]
    assert count(path) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.txt", b"a", "its name must end in .csv, .jsonl, .parquet"),
        ("prompts.csv", b"txt_prompt\na\n", "no column text_prompt"),
        ("prompts.csv", b"", "no column text_prompt"),
        ("prompts.csv", b"text_prompt\n", "prompts.csv holds no prompts"),
        ("prompts.jsonl", b"\n", "prompts.jsonl holds no prompts"),
        ("prompts.csv", b"text_prompt\n\xff\xfe\n", "cannot be read"),
        ("prompts.csv", b'text_prompt\n"a\n', "cannot be read"),
        ("prompts.parquet", b"PAR1 and then nothing", "cannot be read"),
        ("prompts.parquet", b"", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (*_, last) = read(path)
    assert last.number == -1
    assert last.error is not None
    assert message in last.error
    assert name in last.error
    assert str(tmp_path) not in last.error


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "prompts.csv")
    assert (row.number, (row.error or "").partition(":")[0]) == (-1, "prompts.csv cannot be read")
