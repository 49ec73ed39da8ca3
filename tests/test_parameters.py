from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sd_mlflow.errors import InvalidParameter, UnknownName
from sd_mlflow.parameters import PARAMETERS, SCHEDULERS, nearest, shown, validate_parameters


def test_defaults_are_those_of_the_contract() -> None:
    assert validate_parameters({}) == {
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "negative_prompt": "",
        "seed": None,
        "num_images_per_prompt": 1,
        "height": None,
        "width": None,
        "scheduler": None,
        "preset": "exact",
        "image_format": "png",
        "image_quality": 95,
        "orient": "list",
        "return_metadata": False,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_inference_steps", 1),
        ("num_inference_steps", 150),
        ("num_inference_steps", 5.0),
        ("num_inference_steps", np.int64(5)),
        ("guidance_scale", 0),
        ("guidance_scale", 30.0),
        ("seed", 0),
        ("seed", 2**32 - 1),
        ("height", 64),
        ("width", 1024),
        ("image_format", "webp"),
        ("orient", "records"),
        ("return_metadata", True),
        ("negative_prompt", "🐎"),
    ],
)
def test_values_within_bounds_are_taken(name: str, value: Any) -> None:
    assert validate_parameters({name: value})[name] == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_inference_steps", 900, "num_inference_steps must be between 1 and 150, got 900"),
        ("num_inference_steps", 0, "between 1 and 150, got 0"),
        ("num_inference_steps", 5.5, "must be an integer, got 5.5"),
        ("num_inference_steps", True, "must be an integer, got True"),
        ("num_inference_steps", "8", "must be an integer, got '8'"),
        ("num_inference_steps", math.inf, "must be an integer, got inf"),
        ("guidance_scale", 30.5, "between 0 and 30, got 30.5"),
        ("guidance_scale", math.nan, "must be a number, got nan"),
        ("guidance_scale", "high", "must be a number, got 'high'"),
        ("guidance_scale", False, "must be a number, got False"),
        ("seed", -1, "between 0 and 4294967295, got -1"),
        ("seed", 2**32, "between 0 and 4294967295, got 4294967296"),
        ("num_images_per_prompt", 9, "between 1 and 8, got 9"),
        ("height", 100, "height must be a multiple of 8, got 100"),
        ("width", 1032, "between 64 and 1024, got 1032"),
        ("scheduler", "Eulr", "scheduler must be one of PNDMScheduler"),
        ("scheduler", 5, "scheduler must be a string, got 5"),
        ("image_format", "gif", "image_format must be one of png, jpeg, webp; got 'gif'"),
        ("image_quality", 101, "between 1 and 100, got 101"),
        ("negative_prompt", 5, "must be a string, got 5"),
        ("negative_prompt", "\ud800", "must be a string"),
        ("return_metadata", 1, "must be true or false, got 1"),
        ("return_metadata", [], "must be true or false, got []"),
    ],
)
def test_values_out_of_bounds_are_named_with_their_bound(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        validate_parameters({name: value})
    assert message in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_null_means_the_default(name: str) -> None:
    assert validate_parameters({name: None}) == validate_parameters({})


def test_an_unknown_parameter_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'num_inference_step'; did you mean num_inference_steps\?"):
        validate_parameters({"num_inference_step": 8})


def test_no_parameter_speaks_of_safety() -> None:
    for name in ("safety_checker", "requires_safety_checker", "disable_safety_checker"):
        with pytest.raises(UnknownName):
            validate_parameters({name: False})


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("PNDM", "PNDMScheduler"),
        ("DDIM", "DDIMScheduler"),
        ("Euler", "EulerDiscreteScheduler"),
        ("EulerAncestral", "EulerAncestralDiscreteScheduler"),
        ("DPMSolverMultistep", "DPMSolverMultistepScheduler"),
        ("UniPC", "UniPCMultistepScheduler"),
        ("LCM", "LCMScheduler"),
        *((name, name) for name in SCHEDULERS),
    ],
)
def test_schedulers_go_by_their_short_names_too(short: str, full: str) -> None:
    assert validate_parameters({"scheduler": short})["scheduler"] == full


def test_messages_stay_short() -> None:
    assert len(shown("x" * 10_000)) <= 60
    assert len(nearest("x" * 10_000, PARAMETERS)) < 300
