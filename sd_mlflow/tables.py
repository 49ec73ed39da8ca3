"""Files of prompts, read row by row: CSV, JSONL and Parquet, of any length.

A row that cannot be read is a row with an error; where a file cannot be read (on), a last row,
numbered -1, names it and says why.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_mlflow.contract import PROMPT, PROMPT_ALIAS
from sd_mlflow.errors import InvalidRequest
from sd_mlflow.parameters import PARAMETERS, shown

if TYPE_CHECKING:
    from pyarrow import RecordBatch

#: Of these an empty cell is kept, for validation to name.
_PROMPTS = (PROMPT, PROMPT_ALIAS)
#: Rows of a Parquet file that are in memory at once.
_PARQUET_ROWS = 256
#: Characters of a CSV cell: more than any prompt that is allowed.
_CSV_CELL = 1 << 20


@dataclass(frozen=True)
class InputRow:
    """Row `number` of a file, from 0: its cells but the empty ones, or why it (-1: the file) cannot be read."""

    number: int
    cells: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read(path: Path) -> Iterator[InputRow]:
    """The rows of `path`, in order."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        why = f"{path.name} is not a file of prompts: its name must end in {', '.join(READERS)}"
        yield InputRow(-1, error=why)
        return
    row = None
    try:
        for row in reader(path):
            yield row
        if row is None:
            yield InputRow(-1, error=f"{path.name} holds no prompts")
    except (OSError, ValueError, csv.Error) as error:
        yield InputRow(-1, error=f"{path.name} cannot be read: {str(error).splitlines()[0]}")


def files_of(source: Path) -> list[Path]:
    """The files of prompts that `source` is or, if it is a folder, holds. Raises `InvalidRequest` if none."""
    found = (
        sorted(path for path in source.iterdir() if path.suffix.lower() in READERS)
        if source.is_dir()
        else [source]
    )
    if not found:
        raise InvalidRequest(f"{source} holds no file whose name ends in {', '.join(READERS)}")
    return found


def count(path: Path) -> int:
    """How many rows of `path` can be read."""
    return sum(row.number >= 0 for row in read(path))


def _csv(path: Path) -> Iterator[InputRow]:
    csv.field_size_limit(_CSV_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        _check_columns(rows.fieldnames or [])
        for number, row in enumerate(rows):
            if None in row or None in row.values():
                yield InputRow(
                    number, error=f"the row has not the {len(rows.fieldnames or [])} cells of the header"
                )
            else:
                filled = {name: text for name, text in row.items() if text.strip() or name in _PROMPTS}
                yield InputRow(number, {name: _typed(name, text) for name, text in filled.items()})


def _jsonl(path: Path) -> Iterator[InputRow]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(line for line in file if line.strip()):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield InputRow(number, error=f"the line is not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield InputRow(number, _without_gaps(row))
            else:
                yield InputRow(number, error=f"the line must be a JSON object, got {shown(row)}")


def _parquet(path: Path) -> Iterator[InputRow]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                yield from of_arrow(batch, number)
                number += batch.num_rows
    except ArrowException as error:
        raise ValueError(error) from None


def of_arrow(batch: RecordBatch, first: int = 0) -> Iterator[InputRow]:
    """The rows of an Arrow record batch, numbered from `first`."""
    for number, row in enumerate(batch.to_pylist(), first):
        yield InputRow(number, _without_gaps(row))


#: How a file's name ends -> who reads it.
READERS: dict[str, Callable[[Path], Iterator[InputRow]]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _check_columns(names: Any) -> None:
    if not any(name in names for name in _PROMPTS):
        raise ValueError(f"it has no column {PROMPT} (or {PROMPT_ALIAS}), only {', '.join(map(str, names))}")


def _without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: cell
        for name, cell in row.items()
        if name in _PROMPTS or not (cell is None or (isinstance(cell, float) and math.isnan(cell)))
    }


def _typed(name: str, text: str) -> Any:
    """A CSV cell as its parameter's type, or as it is if it cannot be: validation will say so."""
    kind = PARAMETERS[name].kind if name in PARAMETERS else "string"
    if kind == "string":
        return text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    for number in (int, float):  # a column of integers with gaps is written as 3.0
        with suppress(ValueError):
            return number(text)
    return text
