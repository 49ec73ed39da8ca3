"""The JSON bodies that POST /score accepts, each turned into rows and parameters.

| key | forms |
|---|---|
| `input_data` | `{"columns", "data", "index"}` with flat, nested or dict rows; strings; records; columns |
| `dataframe_split`, `dataframe_records`, `inputs`, `instances` | as MLflow's own server takes them |
| `params` or `parameters` | beside the key above, or inside `input_data` |

`index` is ignored: the rows are counted from `data`, as the sample of Azure's catalog needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sd_mlflow.contract import PROMPT
from sd_mlflow.errors import InvalidRequest, UnknownName
from sd_mlflow.parameters import nearest, shown

DATA_KEYS = ("input_data", "dataframe_split", "dataframe_records", "inputs", "instances")
PARAMETER_KEYS = ("params", "parameters")
_SPLIT_KEYS = ("columns", "data", "index")

Rows = list[dict[str, Any]]


def read_body(body: bytes) -> tuple[Rows, dict[str, Any]]:
    """Rows and parameters of a request's `body`.

    Raises `InvalidRequest` for what is not such a body, `UnknownName` for a key that none has.
    """
    try:
        content = json.loads(body, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidRequest(f"the body must be a JSON object with one of {', '.join(DATA_KEYS)}")
    known = (*DATA_KEYS, *PARAMETER_KEYS)
    for key in content:
        if key not in known:
            raise UnknownName(f"unknown key {shown(key)}{nearest(key, known)}")
    keys = [key for key in DATA_KEYS if key in content]
    if len(keys) != 1:
        found = " and ".join(keys) if keys else "none"
        raise InvalidRequest(f"the body must hold one of {', '.join(DATA_KEYS)}; it holds {found}")
    data, inside = content[keys[0]], {}
    if keys[0] == "input_data" and isinstance(data, dict):
        inside = {key: data[key] for key in PARAMETER_KEYS if key in data}
        data = {key: value for key, value in data.items() if key not in PARAMETER_KEYS}
    outside = {key: content[key] for key in PARAMETER_KEYS if key in content}
    return read_rows(data, keys[0]), _read_parameters([*outside.values(), *inside.values()])


def read_rows(data: Any, name: str) -> Rows:
    """The rows of `data` in any of its forms; `name` is what errors call it."""
    if isinstance(data, dict):
        if any(key in data for key in ("data", "columns")):
            return _split(data, name)
        return _columns(data, name)
    if isinstance(data, list):
        return [_row(row, [PROMPT], number) for number, row in enumerate(data)]
    raise InvalidRequest(f"{name} must be an object or a list, got {shown(data)}")


def _split(data: Mapping[str, Any], name: str) -> Rows:
    for key in data:
        if key not in _SPLIT_KEYS:
            raise UnknownName(f"unknown key {shown(key)} in {name}{nearest(key, _SPLIT_KEYS)}")
    columns, rows = data.get("columns", [PROMPT]), data.get("data")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise InvalidRequest(f"{name}.columns must be a list of strings, got {shown(columns)}")
    if not columns or len(set(columns)) < len(columns):
        raise InvalidRequest(f"{name}.columns must name each column once, got {shown(columns)}")
    if not isinstance(rows, list):
        raise InvalidRequest(f"{name}.data must be a list of rows, got {shown(rows)}")
    return [_row(row, columns, number) for number, row in enumerate(rows)]


def _row(row: Any, columns: list[str], number: int) -> dict[str, Any]:
    """One row: a dict, a list of cells, or the only cell itself."""
    if isinstance(row, dict):
        return row
    cells = row if isinstance(row, list) else [row]
    if len(cells) != len(columns):
        raise InvalidRequest(
            f"the row has {len(cells)} cells for {len(columns)} columns ({', '.join(columns)})", number
        )
    return dict(zip(columns, cells, strict=True))


def _columns(data: Mapping[str, Any], name: str) -> Rows:
    """Rows of a dict of columns; a lone cell stands for a column of one."""
    columns = {key: cells if isinstance(cells, list) else [cells] for key, cells in data.items()}
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{key} {len(cells)}" for key, cells in columns.items())
        raise InvalidRequest(f"the columns of {name} must be equally long: {counts}")
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ: of two, Python would take the last and say nothing."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest(f"the key {shown(name)} is given twice")
        found[name] = value
    return found


def _read_parameters(given: list[Any]) -> dict[str, Any]:
    if len(given) > 1:
        raise InvalidRequest("parameters are given in two places: give them once, as params")
    parameters = given[0] if given else {}
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"params must be an object, got {shown(parameters)}")
    return parameters
