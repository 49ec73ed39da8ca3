"""Presets: what they leave alone, what they save, and how near to the exact picture they stay."""

from __future__ import annotations

import pytest
import torch

from sd_mlflow import features, pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.denoising import Denoiser, Denoising
from sd_mlflow.images import psnr
from sd_mlflow.parameters import ImageRequest, validate_parameters
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.presets import PRESETS


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return pipeline.load(find(SD_EMOJI).folder, "cpu", "float32")


def request_of(preset: str, **given: object) -> ImageRequest:
    values = validate_parameters({"preset": preset, **given})
    return ImageRequest(
        "a photograph of a lion",
        seed=3,
        preset=preset,
        **{name: values[name] for name in ("num_inference_steps", "scheduler", "guidance_scale")},
    )


def test_a_preset_decides_only_what_is_left_at_its_default() -> None:
    values = validate_parameters({"preset": "fast"})
    assert values["scheduler"] == "DPMSolverMultistepScheduler"
    assert values["num_inference_steps"] == 15
    values = validate_parameters({"preset": "fast", "scheduler": "Euler", "num_inference_steps": 30})
    assert (values["scheduler"], values["num_inference_steps"]) == ("EulerDiscreteScheduler", 30)
    assert validate_parameters({})["num_inference_steps"] == 50


def unet_calls(loaded: Pipeline, request: ImageRequest) -> tuple[list[int], object]:
    """The rows of every whole UNet call of an image, and the image."""
    rows: list[int] = []
    hook = loaded.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    denoiser, image = Denoiser(loaded), Denoising(request, loaded)
    with torch.inference_mode():
        while not image.finished:
            denoiser.step([image])
        pixels = denoiser.decode(image)
    hook.remove()
    return rows, pixels


def test_each_preset_does_the_work_that_it_names(loaded: Pipeline) -> None:
    exact, picture = unet_calls(loaded, request_of("exact"))
    fast, near = unet_calls(loaded, request_of("fast"))
    draft, rough = unet_calls(loaded, request_of("draft"))
    assert exact == [2] * 51
    assert fast == [2] * 8
    assert draft == [2] * 5 + [1]
    assert psnr(picture, near) > psnr(picture, rough) > 15


def test_without_guidance_a_preset_has_one_row_throughout(loaded: Pipeline) -> None:
    rows, _ = unet_calls(loaded, request_of("fast", guidance_scale=1.0))
    assert rows == [1] * 8


def test_features_of_the_same_step_give_the_whole_step(loaded: Pipeline) -> None:
    call = (torch.randn(2, 4, 16, 16), torch.tensor([500.0, 20.0]), torch.randn(2, 77, 192))
    with torch.inference_mode():
        noise, deep = features.whole(loaded.unet, *call)
        again = features.shallow(loaded.unet, *call, deep)
    assert torch.allclose(noise, again, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_first_step_of_a_preset_is_whole_and_guided(preset: object) -> None:
    assert not preset.reuses_features(0)  # type: ignore[attr-defined]
    assert preset.guides(0, 1)  # type: ignore[attr-defined]
