"""Our denoising loop against diffusers' `StableDiffusionPipeline.__call__`, in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from parity import PROMPTS, SCHEDULERS, Pair, pair_of

from sd_mlflow.checkpoint import SD_EMOJI, find


@pytest.fixture(scope="module")
def sd_emoji() -> Iterator[Pair]:
    with pair_of(find(SD_EMOJI).folder) as pair:
        yield pair


@pytest.mark.parametrize("scale", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"])
def test_sd_emoji_draws_what_diffusers_draws(sd_emoji: Pair, scheduler: str, scale: float) -> None:
    assert sd_emoji.largest_difference(scheduler, PROMPTS, steps=20, size=128, scale=scale) <= 1
