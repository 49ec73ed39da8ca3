"""Our denoising loop against diffusers' `StableDiffusionPipeline.__call__`, in float32."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.engine import Engine
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.safety import SafetyChecker
from sd_mlflow.settings import Settings

PROMPTS = ["a photograph of an astronaut riding a horse", "a cartoon of a cat on the grass"]
SCHEDULERS = ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]


def largest_difference(folder: Path, scheduler: str, steps: int, size: int, guidance_scale: float) -> int:
    """The largest difference of a pixel, in 255ths, over the images of both prompts."""
    peer = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    peer.scheduler = getattr(diffusers, scheduler).from_config(peer.scheduler.config)
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=["blurry"] * len(PROMPTS),
        height=size,
        width=size,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(PROMPTS))],
    ).images
    del peer
    loaded = pipeline.load(folder, "cpu", "float32")
    engine = Engine(loaded, SafetyChecker(loaded.safety_checker, loaded.feature_extractor), Settings())
    ours = engine.generate(
        [
            ImageRequest(
                prompt,
                seed=seed,
                negative_prompt="blurry",
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                scheduler=scheduler,
                height=size,
                width=size,
            )
            for seed, prompt in enumerate(PROMPTS)
        ]
    )
    engine.close()
    differences = [
        np.abs(np.asarray(theirs).astype(int) - image.pixels.astype(int)).max()
        for theirs, image in zip(expected, ours, strict=True)
    ]
    return int(max(differences))


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"])
def test_sd_emoji_draws_what_diffusers_draws(scheduler: str, guidance_scale: float) -> None:
    folder = find(SD_EMOJI).folder
    assert largest_difference(folder, scheduler, steps=20, size=128, guidance_scale=guidance_scale) <= 1
