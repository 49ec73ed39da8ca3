"""THE table of generation parameters, and the requests made of them.

Everything that knows a parameter's name, type, default or bounds reads it here: validation,
the MLflow `ParamSchema`, the command line's flags and the documentation.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sd_mlflow.errors import InvalidParameter, UnknownName
from sd_mlflow.presets import PRESETS

Kind = Literal["integer", "long", "double", "string", "boolean"]

#: The allow-list of schedulers, under diffusers' class names.
SCHEDULERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LCMScheduler",
)

_KIND_NAMES = {
    "integer": "an integer",
    "long": "an integer",
    "double": "a number",
    "string": "a string",
    "boolean": "true or false",
}


@dataclass(frozen=True)
class Parameter:
    """A row of the table. `default` None means: as the checkpoint has it (`seed`: drawn at random)."""

    name: str
    kind: Kind
    default: int | float | str | bool | None
    description: str
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()

    def validate(self, value: Any, row: int | None = None) -> Any:
        """`value` as this parameter's Python type; None means the default.

        Raises `InvalidParameter` with name, value and bound.
        """
        value = value.item() if hasattr(value, "item") else value
        if value is None:
            return self.default
        value = self._typed(value, row)
        if (self.minimum is not None and value < self.minimum) or (
            self.maximum is not None and value > self.maximum
        ):
            bounds = f"between {self.minimum:g} and {self.maximum:.0f}"
            raise InvalidParameter(f"{self.name} must be {bounds}, got {shown(value)}", row)
        if self.multiple_of and value % self.multiple_of:
            raise InvalidParameter(f"{self.name} must be a multiple of {self.multiple_of}, got {value}", row)
        if self.choices and value not in self.choices:
            allowed = ", ".join(self.choices)
            raise InvalidParameter(f"{self.name} must be one of {allowed}; got {shown(value)}", row)
        return value

    def _typed(self, value: Any, row: int | None) -> Any:
        if self.kind in ("integer", "long"):
            # JSON and pandas write whole numbers as 5.0 where a column has gaps.
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, float) and value.is_integer():
                return int(value)
        elif self.kind == "double":
            # Not isfinite, which overflows on an integer past every float.
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
                return float(value)
        elif self.kind == "boolean":
            if isinstance(value, bool):
                return value
        elif isinstance(value, str) and is_unicode(value):
            return value
        raise InvalidParameter(f"{self.name} must be {_KIND_NAMES[self.kind]}, got {shown(value)}", row)


PARAMETERS: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("num_inference_steps", "integer", 50, "Denoising steps.", 1, 150),
        Parameter(
            "guidance_scale",
            "double",
            7.5,
            "How closely the image follows the prompt (arXiv:2207.12598); at 1 or below guidance is off, "
            "which halves the work.",
            0,
            30,
        ),
        Parameter("negative_prompt", "string", "", "What the image should not show."),
        Parameter(
            "seed",
            "long",
            None,
            "Where the noise starts; image i of a request uses seed + i. Drawn at random if not given.",
            0,
            2**32 - 1,
        ),
        Parameter("num_images_per_prompt", "integer", 1, "Images made of each prompt.", 1, 8),
        Parameter("height", "integer", None, "Pixels; the checkpoint's own if not given.", 64, 1024, 8),
        Parameter("width", "integer", None, "Pixels; the checkpoint's own if not given.", 64, 1024, 8),
        Parameter(
            "scheduler",
            "string",
            None,
            "The solver, as diffusers names it; the checkpoint's own if not given.",
            choices=SCHEDULERS,
        ),
        Parameter(
            "preset",
            "string",
            "exact",
            "How much work is saved, where scheduler and num_inference_steps are left at their defaults. "
            + " ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items()),
            choices=tuple(PRESETS),
        ),
        Parameter("image_format", "string", "png", "How images are encoded.", choices=("png", "jpeg", "webp")),
        Parameter("image_quality", "integer", 95, "Quality of jpeg and webp.", 1, 100),
        Parameter(
            "orient",
            "string",
            "list",
            "One record for the whole request (list), or one a row (records).",
            choices=("list", "records"),
        ),
        Parameter("return_metadata", "boolean", False, "Add what makes each image again, its seed first."),
    )
}


@dataclass(frozen=True)
class ImageRequest:
    """One image to be made: everything that decides its pixels. None: as the checkpoint has it."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    preset: str = "exact"
    row: int = 0

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guidance_scale > 1


def validate_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of the table, as `given` or by default.

    Raises `UnknownName` for a name that is not in the table, `InvalidParameter` for a bad value.
    """
    for name in given:
        if name not in PARAMETERS:
            raise UnknownName(f"unknown parameter {shown(name)}{nearest(name, PARAMETERS)}")
    scheduler = given.get("scheduler")
    if isinstance(scheduler, str):
        given = {**given, "scheduler": full_scheduler_name(scheduler)}
    values = {name: parameter.validate(given.get(name)) for name, parameter in PARAMETERS.items()}
    # MLflow fills in every default before the model sees a request, so a default counts as not given.
    for name, value in PRESETS[values["preset"]].parameters.items():
        if values[name] == PARAMETERS[name].default:
            values[name] = value
    return values


def full_scheduler_name(name: str) -> str:
    """diffusers' class name for a short form, "Euler" for "EulerDiscreteScheduler"; else `name` as it is."""
    for suffix in ("Scheduler", "DiscreteScheduler", "MultistepScheduler"):
        if name + suffix in SCHEDULERS:
            return name + suffix
    return name


def nearest(name: Any, known: Iterable[str]) -> str:
    """ ", did you mean …?" for an error about `name`, or which names there are."""
    close = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def shown(value: Any) -> str:
    """`value` as an error message shows it: quoted if text, and never long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: a lone surrogate cannot, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
