"""What a contender's stages gave, and whole images composed of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sd_mlflow.bench.work import CHECK, DECODE, STEPS, TEXT
from sd_mlflow.emoji import networks
from sd_mlflow.presets import Preset
from sd_mlflow.schedulers import ImageScheduler


@dataclass
class Series:
    """Seconds of every round, the result of the first, how long loading took, and peak memory in bytes."""

    ready_seconds: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, torch.Tensor] = field(default_factory=dict)
    peak_bytes: int = 0

    def median(self, stage: str) -> float:
        """Seconds that `stage` takes."""
        return statistics.median(self.seconds[stage])

    def compose(self, steps: Sequence[str]) -> float:
        """Seconds of an image whose denoising steps are of the kinds `steps`."""
        return sum(self.median(stage) for stage in (TEXT, *steps, DECODE, CHECK))

    def over(self, other: Series) -> Series:
        """This, with the stages of `other` that it lacks."""
        return Series(self.ready_seconds, other.seconds | self.seconds, self.results, self.peak_bytes)

    def difference(self, other: Series, stage: str) -> float | None:
        """|ours - theirs| / |theirs| of what `stage` made, or None if one of them made no tensor."""
        if stage not in self.results or stage not in other.results:
            return None
        theirs = other.results[stage]
        return float((self.results[stage] - theirs).norm() / theirs.norm())


def steps_of(preset: Preset, scheduler: str | None, num_inference_steps: int) -> list[str]:
    """The kind of every denoising step of a guided image, `scheduler` None being v1-4's own."""
    config = dict(networks.scheduler().config)
    timesteps = ImageScheduler(
        scheduler or "PNDMScheduler", config, num_inference_steps, torch.device("cpu")
    ).timesteps
    count = len(timesteps)
    return [STEPS[preset.reuses_features(i), 2 if preset.guides(i, count) else 1] for i in range(count)]
