from __future__ import annotations

import pytest
import torch

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.errors import InvalidParameter
from sd_mlflow.parameters import SCHEDULERS
from sd_mlflow.schedulers import ImageScheduler

CONFIG = pipeline.scheduler_config(find(SD_EMOJI).folder)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 50, 150])
def test_every_scheduler_does_every_number_of_steps(name: str, steps: int) -> None:
    if name == "LCMScheduler" and steps > 50:
        with pytest.raises(InvalidParameter, match="num_inference_steps 150 is not possible with LCMScheduler"):
            ImageScheduler(name, CONFIG, steps, CPU)
        return
    scheduler, generator = ImageScheduler(name, CONFIG, steps, CPU), torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        noise = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(noise, timestep, latents, generator)
    assert latents.isfinite().all()


def test_other_classes_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="got 'ScoreSdeVeScheduler'"):
        ImageScheduler("ScoreSdeVeScheduler", CONFIG, 5, CPU)
