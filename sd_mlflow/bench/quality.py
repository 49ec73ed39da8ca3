"""How far a preset's pictures are from those of `exact`: sd-emoji draws both."""

from __future__ import annotations

import statistics
from contextlib import closing
from dataclasses import replace

from sd_mlflow import checkpoint
from sd_mlflow.images import psnr
from sd_mlflow.model import TextToImage
from sd_mlflow.parameters import ImageRequest, validate_parameters
from sd_mlflow.safety import Pixels
from sd_mlflow.settings import Settings

_PROMPTS = (
    "a photograph of an astronaut riding a horse on mars",
    "a photograph of a lion",
    "a cartoon of a cat on the grass",
    "a flat icon of a rocket at night",
    "a photograph of a panda riding a bicycle",
    "a cartoon of a guitar on a yellow background",
    "a photograph of a penguin next to a whale",
    "a cartoon of a robot riding an elephant in the snow",
)


def quality(presets: list[str]) -> dict[str, float]:
    """Median PSNR, in dB, of each preset's pictures against `exact`, over 8 prompts; `exact` is infinite."""
    with closing(
        TextToImage(checkpoint.find(checkpoint.SD_EMOJI).folder, Settings(deadline_seconds=3600))
    ) as model:
        exact = _draw(model, "exact")
        return {
            preset: statistics.median(map(psnr, exact, _draw(model, preset)))
            for preset in presets
            if preset != "exact"
        }


def _draw(model: TextToImage, preset: str) -> list[Pixels]:
    values = validate_parameters({"preset": preset})
    first = ImageRequest(
        "", 0, num_inference_steps=values["num_inference_steps"], scheduler=values["scheduler"], preset=preset
    )
    requests = [replace(first, prompt=prompt, seed=seed) for seed, prompt in enumerate(_PROMPTS)]
    return [future.result().pixels for future in model.submit(requests)]
