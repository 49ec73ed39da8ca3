from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import SAMPLE

from sd_mlflow.errors import InvalidRequest, RequestError, UnknownName
from sd_mlflow.forms import read_body

TWO = [{"text_prompt": "a"}, {"text_prompt": "b"}]


@pytest.mark.parametrize(
    "body",
    [
        {"input_data": {"columns": ["text_prompt"], "data": ["a", "b"], "index": [0]}},
        {"input_data": {"columns": ["text_prompt"], "data": [["a"], ["b"]], "index": [0, 1]}},
        {"input_data": {"columns": ["text_prompt"], "data": [["a"], "b"]}},
        {"input_data": {"columns": ["text_prompt"], "data": TWO, "index": "nonsense"}},
        {"input_data": {"data": ["a", "b"]}},
        {"input_data": ["a", "b"]},
        {"input_data": [["a"], ["b"]]},
        {"input_data": TWO},
        {"input_data": {"text_prompt": ["a", "b"]}},
        {"dataframe_split": {"columns": ["text_prompt"], "data": [["a"], ["b"]]}},
        {"dataframe_records": TWO},
        {"inputs": ["a", "b"]},
        {"inputs": {"text_prompt": ["a", "b"]}},
        {"instances": ["a", "b"]},
        {"instances": TWO},
    ],
)
def test_every_form_gives_the_same_rows(body: dict[str, Any]) -> None:
    assert read_body(json.dumps(body).encode()) == (TWO, {})


def test_the_sample_has_two_rows() -> None:
    rows, parameters = read_body(SAMPLE)
    assert [row["text_prompt"] for row in rows] == [
        "a photograph of an astronaut riding a horse",
        "a photograph of a cat riding a horse",
    ]
    assert parameters == {}


@pytest.mark.parametrize("key", ["params", "parameters"])
def test_parameters_stand_at_the_top_or_inside(key: str) -> None:
    split = {"columns": ["text_prompt"], "data": ["a"]}
    for body in (
        {"input_data": split, key: {"seed": 1}},
        {"input_data": split | {key: {"seed": 1}}},
        {"input_data": {"text_prompt": ["a"], key: {"seed": 1}}},
        {"instances": ["a"], key: {"seed": 1}},
    ):
        assert read_body(json.dumps(body).encode()) == ([{"text_prompt": "a"}], {"seed": 1})


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", InvalidRequest, "the body is not JSON"),
        (b"null", InvalidRequest, "must be a JSON object"),
        (b"[1]", InvalidRequest, "must be a JSON object"),
        (b"{", InvalidRequest, "the body is not JSON"),
        (b"\xff", InvalidRequest, "the body is not JSON"),
        (b'{"inputs": ["a"], "params": {}, "params": {}}', InvalidRequest, "'params' is given twice"),
        (b"[" * 100_000, InvalidRequest, "the body is not JSON"),
        ({}, InvalidRequest, "it holds none"),
        ({"foo": 1}, UnknownName, "unknown key 'foo'"),
        ({"input_dat": []}, UnknownName, "did you mean input_data?"),
        ({"inputs": [], "instances": []}, InvalidRequest, "it holds inputs and instances"),
        ({"input_data": "a"}, InvalidRequest, "input_data must be an object or a list, got 'a'"),
        ({"input_data": {"columns": "text_prompt", "data": []}}, InvalidRequest, "columns must be a list"),
        ({"input_data": {"columns": [], "data": []}}, InvalidRequest, "name each column once"),
        ({"input_data": {"columns": ["a", "a"], "data": []}}, InvalidRequest, "name each column once"),
        ({"input_data": {"columns": ["a"], "data": "x"}}, InvalidRequest, "data must be a list of rows"),
        ({"input_data": {"columns": ["a"]}}, InvalidRequest, "data must be a list of rows, got None"),
        ({"input_data": {"columns": ["a"], "data": [["x", "y"]]}}, InvalidRequest, "2 cells for 1 columns"),
        ({"input_data": {"columns": ["a", "b"], "data": ["x"]}}, InvalidRequest, "1 cells for 2 columns"),
        ({"input_data": {"columns": ["a"], "data": [], "foo": 1}}, UnknownName, "'foo' in input_data"),
        ({"input_data": {"a": ["x"], "b": []}}, InvalidRequest, "must be equally long: a 1, b 0"),
        ({"inputs": ["a"], "params": [1]}, InvalidRequest, "params must be an object"),
        ({"inputs": ["a"], "params": {}, "parameters": {}}, InvalidRequest, "in two places"),
        ({"input_data": {"data": ["a"], "params": {}}, "params": {}}, InvalidRequest, "in two places"),
    ],
)
def test_malformed_bodies_are_refused(body: Any, error: type[RequestError], message: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(error) as refused:
        read_body(data)
    assert message in refused.value.message
