from __future__ import annotations

import base64
import math
from typing import Any

import pytest

from sd_mlflow.contract import GenerationRequest, ImageAnswer, parse, records, signature
from sd_mlflow.errors import InvalidParameter, InvalidRequest, LimitExceeded, RequestError, UnknownName
from sd_mlflow.parameters import PARAMETERS
from sd_mlflow.settings import Settings

SETTINGS = Settings()


def request(rows: list[dict[str, Any]], **parameters: Any) -> GenerationRequest:
    return parse(rows, parameters, SETTINGS)


def test_image_i_uses_seed_plus_i() -> None:
    made = request([{"text_prompt": "a"}, {"text_prompt": "b"}], seed=7, num_images_per_prompt=2)
    assert [(image.prompt, image.seed, image.row) for image in made.images] == [
        ("a", 7, 0),
        ("a", 8, 0),
        ("b", 9, 1),
        ("b", 10, 1),
    ]


def test_seeds_wrap_at_their_bound() -> None:
    made = request([{"text_prompt": "a"}, {"text_prompt": "b"}], seed=2**32 - 1)
    assert [image.seed for image in made.images] == [2**32 - 1, 0]


def test_a_missing_seed_is_drawn_at_random() -> None:
    seeds = {request([{"text_prompt": "a"}]).images[0].seed for _ in range(20)}
    assert len(seeds) > 10
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_row_overrides_the_parameter_of_the_same_name() -> None:
    rows = [
        {"text_prompt": "a", "seed": 5, "negative_prompt": "red"},
        {"text_prompt": "b", "seed": None, "negative_prompt": None},
        {"text_prompt": "c", "seed": math.nan, "negative_prompt": math.nan},
    ]
    made = request(rows, seed=100, negative_prompt="blue")
    assert [image.seed for image in made.images] == [5, 101, 102]
    assert [image.negative_prompt for image in made.images] == ["red", "blue", "blue"]


def test_the_catalog_s_column_name_is_an_alias() -> None:
    assert request([{"prompt": "a cat"}]).images[0].prompt == "a cat"


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({}, InvalidRequest, "the column text_prompt is missing"),
        ({"text_prompt": None}, InvalidParameter, "text_prompt must be a string, got None"),
        ({"text_prompt": math.nan}, InvalidParameter, "text_prompt must be a string, got nan"),
        ({"text_prompt": 5}, InvalidParameter, "text_prompt must be a string, got 5"),
        ({"text_prompt": "  \n"}, InvalidParameter, "text_prompt must not be blank"),
        ({"text_prompt": "\ud800"}, InvalidParameter, "text_prompt must be a string"),
        ({"text_prompt": "x" * 5000}, LimitExceeded, "characters of text_prompt: 5000, at most 4000"),
        ({"text_prompt": "a", "negative_prompt": "x" * 5000}, LimitExceeded, "characters of negative_prompt"),
        ({"text_prompt": "a", "prompt": "b"}, InvalidRequest, "two names of one column"),
        ({"txt_prompt": "a"}, UnknownName, "'txt_prompt'; did you mean text_prompt?"),
        ({"text_prompt": "a", "seed": -1}, InvalidParameter, "seed must be between 0 and 4294967295, got -1"),
        ({"text_prompt": "a", "seed": "x"}, InvalidParameter, "seed must be an integer, got 'x'"),
    ],
)
def test_a_faulty_row_is_named(row: dict[str, Any], error: type[RequestError], message: str) -> None:
    with pytest.raises(error) as refused:
        request([{"text_prompt": "fine"}, row])
    assert message in refused.value.message
    assert refused.value.row == 1


@pytest.mark.parametrize(
    ("rows", "parameters", "message"),
    [
        (17, {}, "prompts in a request: 17, at most 16"),
        (5, {"num_images_per_prompt": 8}, "images in a request: 40, at most 32"),
    ],
)
def test_limits_are_kept(rows: int, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(LimitExceeded, match=message):
        request([{"text_prompt": "a"}] * rows, **parameters)


def test_the_limit_of_pixels_is_kept() -> None:
    with pytest.raises(LimitExceeded, match="1048576, at most 4096"):
        parse(
            [{"text_prompt": "a"}],
            {"height": 1024, "width": 1024},
            Settings(max_pixels_per_image=4096),
        )


def test_no_rows_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no rows"):
        request([])


def answers(made: GenerationRequest) -> list[ImageAnswer]:
    return [
        ImageAnswer(image.row, f"{n}".encode(), "False", {"seed": image.seed})
        for n, image in enumerate(made.images)
    ]


def test_one_record_for_the_request() -> None:
    made = request([{"text_prompt": "a"}, {"text_prompt": "b"}])
    (record,) = records(made, answers(made))
    assert record == {
        "generated_images": [base64.b64encode(b"0").decode(), base64.b64encode(b"1").decode()],
        "nsfw_content_detected": ["False", "False"],
    }


def test_one_record_a_row_in_the_rows_order() -> None:
    made = request(
        [{"text_prompt": "a"}, {"text_prompt": "b"}],
        orient="records",
        num_images_per_prompt=2,
        seed=1,
        return_metadata=True,
    )
    assert [record["seed"] for record in records(made, answers(made))] == [[1, 2], [3, 4]]


def test_the_signature_is_made_from_the_table() -> None:
    made = signature()
    assert [(p.name, p.default) for p in made.params.params] == [(p.name, p.default) for p in PARAMETERS.values()]
    assert made.inputs.required_input_names() == ["text_prompt"]
    assert made.inputs.optional_input_names() == ["negative_prompt", "seed"]
    assert made.outputs is None
