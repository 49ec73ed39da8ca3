"""Our engine and diffusers' `StableDiffusionPipeline.__call__` side by side, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from sd_mlflow import pipeline
from sd_mlflow.engine import Engine
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.settings import Settings

PROMPTS = ["a photograph of an astronaut riding a horse", "a cartoon of a cat on the grass"]
SCHEDULERS = ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]


@dataclass(frozen=True)
class Pair:
    """diffusers' pipeline and our engine on one checkpoint."""

    peer: StableDiffusionPipeline
    engine: Engine

    def largest_difference(self, scheduler: str, prompts: list[str], steps: int, size: int, scale: float) -> int:
        """The largest difference of a pixel, in 255ths, over the images of `prompts`."""
        self.peer.scheduler = getattr(diffusers, scheduler).from_config(self.peer.scheduler.config)
        theirs = self.peer(
            prompts,
            num_inference_steps=steps,
            guidance_scale=scale,
            negative_prompt=["blurry"] * len(prompts),
            height=size,
            width=size,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(prompts))],
        ).images
        requests = [
            ImageRequest(
                prompt,
                seed=seed,
                negative_prompt="blurry",
                num_inference_steps=steps,
                guidance_scale=scale,
                scheduler=scheduler,
                height=size,
                width=size,
            )
            for seed, prompt in enumerate(prompts)
        ]
        ours = [image.pixels for image in self.engine.generate(requests)]
        assert any(pixels.any() for pixels in ours)
        pairs = zip(theirs, ours, strict=True)
        return max(int(np.abs(np.asarray(one).astype(int) - other.astype(int)).max()) for one, other in pairs)


@contextmanager
def pair_of(folder: Path) -> Iterator[Pair]:
    peer = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    peer.set_progress_bar_config(disable=True)
    engine = Engine(lambda dtype: pipeline.load(folder, "cpu", dtype), Settings(dtype="float32"))
    yield Pair(peer, engine)
    engine.close()
