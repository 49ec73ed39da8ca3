"""Requests in, records out: rows and parameters become a `GenerationRequest`, images become records.

The bodies that a server accepts are read in `sd_mlflow.forms`; here rows are dicts already.
"""

from __future__ import annotations

import base64
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd_mlflow.errors import InvalidParameter, InvalidRequest, LimitExceeded, UnknownName
from sd_mlflow.parameters import (
    PARAMETERS,
    ImageRequest,
    is_unicode,
    nearest,
    shown,
    validate_parameters,
)
from sd_mlflow.settings import Settings

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

Row = Mapping[str, Any]

PROMPT = "text_prompt"
#: The catalog's name of the same column.
PROMPT_ALIAS = "prompt"
#: Columns that override, in their row, the parameter of the same name.
ROW_PARAMETERS = ("negative_prompt", "seed")
COLUMNS = (PROMPT, PROMPT_ALIAS, *ROW_PARAMETERS)

IMAGES, FLAGS = "generated_images", "nsfw_content_detected"


@dataclass(frozen=True)
class GenerationRequest:
    """A whole request: its images in the rows' order, and how they go back."""

    images: tuple[ImageRequest, ...]
    rows: int
    image_format: str
    image_quality: int
    orient: str
    return_metadata: bool


@dataclass(frozen=True)
class ImageAnswer:
    """One image as it goes back: encoded, with its flag and what makes it again."""

    row: int
    encoded: bytes
    flag: str
    metadata: Mapping[str, Any]


def parse(rows: Sequence[Row], parameters: Mapping[str, Any], settings: Settings) -> GenerationRequest:
    """Validate everything that can be without the model.

    Raises `InvalidRequest`, `InvalidParameter` or `UnknownName` with the row at fault, and
    `LimitExceeded` past a limit of `settings`.
    """
    values = validate_parameters(parameters)
    if not rows:
        raise InvalidRequest("the request has no rows: give at least one text_prompt")
    per_prompt = values["num_images_per_prompt"]
    _limit("prompts in a request", len(rows), settings.max_prompts_per_request)
    _limit("images in a request", len(rows) * per_prompt, settings.max_images_per_request)
    _limit_pixels(values, settings)
    request_seed = _base_seed(values["seed"])
    images: list[ImageRequest] = []
    for number, row in enumerate(rows):
        prompt, overrides = _read_row(row, number, settings)
        row_values = values | overrides
        for copy in range(per_prompt):
            seed = overrides["seed"] + copy if "seed" in overrides else request_seed + len(images)
            images.append(
                ImageRequest(
                    prompt=prompt,
                    seed=seed % 2**32,
                    negative_prompt=row_values["negative_prompt"],
                    num_inference_steps=values["num_inference_steps"],
                    guidance_scale=values["guidance_scale"],
                    height=values["height"],
                    width=values["width"],
                    scheduler=values["scheduler"],
                    preset=values["preset"],
                    row=number,
                )
            )
    return GenerationRequest(
        tuple(images),
        len(rows),
        values["image_format"],
        values["image_quality"],
        values["orient"],
        values["return_metadata"],
    )


def records(request: GenerationRequest, answers: Sequence[ImageAnswer]) -> list[dict[str, list[Any]]]:
    """The response: one record for the request, or one a row, whose cells are lists."""
    if request.orient == "list":
        return [_record(answers, request.return_metadata)]
    return [
        _record([answer for answer in answers if answer.row == row], request.return_metadata)
        for row in range(request.rows)
    ]


def signature() -> ModelSignature:
    """The MLflow signature: the columns, and a parameter for each row of the table.

    No output schema: a cell is a list, and Azure's no-code server does not start on a schema
    that says so.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    columns = [
        ColSpec(DataType.string, PROMPT),
        ColSpec(DataType.string, "negative_prompt", required=False),
        # A double, because pandas writes a column of seeds with gaps as one.
        ColSpec(DataType.double, "seed", required=False),
    ]
    params = [ParamSpec(p.name, DataType[p.kind], p.default) for p in PARAMETERS.values()]
    return ModelSignature(inputs=Schema(columns), params=ParamSchema(params))


def _read_row(row: Row, number: int, settings: Settings) -> tuple[str, dict[str, Any]]:
    """The prompt of `row`, and the parameters that it overrides."""
    for name in row:
        if name not in COLUMNS:
            raise UnknownName(f"unknown column {shown(name)}{nearest(name, COLUMNS)}", number)
    if PROMPT in row and PROMPT_ALIAS in row:
        raise InvalidRequest(f"{PROMPT} and {PROMPT_ALIAS} are two names of one column: give one", number)
    if PROMPT not in row and PROMPT_ALIAS not in row:
        raise InvalidRequest(f"the column {PROMPT} is missing", number)
    prompt = row.get(PROMPT, row.get(PROMPT_ALIAS))
    if not isinstance(prompt, str) or not is_unicode(prompt):
        raise InvalidParameter(f"{PROMPT} must be a string, got {shown(prompt)}", number)
    if not prompt.strip():
        raise InvalidParameter(f"{PROMPT} must not be blank, got {shown(prompt)}", number)
    overrides = {
        name: PARAMETERS[name].validate(row[name], number)
        for name in ROW_PARAMETERS
        if not _missing(row.get(name))
    }
    for name, text in ((PROMPT, prompt), ("negative_prompt", overrides.get("negative_prompt", ""))):
        _limit(f"characters of {name}", len(text), settings.max_prompt_characters, number)
    return prompt, overrides


def _missing(cell: Any) -> bool:
    """Whether a cell is empty: None, or NaN, which pandas writes into the gaps of a column."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _record(answers: Sequence[ImageAnswer], with_metadata: bool) -> dict[str, list[Any]]:
    record: dict[str, list[Any]] = {
        IMAGES: [base64.b64encode(answer.encoded).decode("ascii") for answer in answers],
        FLAGS: [answer.flag for answer in answers],
    }
    if with_metadata:
        for name in answers[0].metadata:
            record[name] = [answer.metadata[name] for answer in answers]
    return record


def _base_seed(seed: int | None) -> int:
    return secrets.randbelow(2**32) if seed is None else seed


def _limit(what: str, found: int, most: int, row: int | None = None) -> None:
    if found > most:
        raise LimitExceeded(f"{what}: {found}, at most {most} are allowed here", row)


def _limit_pixels(values: Mapping[str, Any], settings: Settings) -> None:
    height, width = values["height"], values["width"]
    if height and width:
        _limit("pixels of an image (height times width)", height * width, settings.max_pixels_per_image)
