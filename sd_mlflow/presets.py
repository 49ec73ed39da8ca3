"""Presets: how much of an image's work may be saved, by name.

A preset decides what a request leaves at its default (solver, steps), and two ways to save work that
no parameter of diffusers names: features reused between steps (arXiv:2312.00858) and guidance
left off for the last steps (arXiv:2404.07724).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """What a preset changes."""

    description: str
    #: Generation parameters that a request leaves at their defaults.
    parameters: Mapping[str, str | int] = field(default_factory=dict)
    #: Every so many steps the whole UNet runs; in between, its last layer alone. 1: always the whole.
    full_step_every: int = 1
    #: Share of the steps, from the first, that are guided.
    guided_share: float = 1.0

    def reuses_features(self, step: int) -> bool:
        """Whether step number `step`, from 0, takes the deep features of the full step before it."""
        return step % self.full_step_every != 0

    def guides(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` is guided, if the image is guided at all."""
        return step < math.ceil(self.guided_share * steps)


PRESETS = {
    "exact": Preset("The checkpoint's own solver, every step whole."),
    "fast": Preset(
        "15 steps of DPM-Solver++, every second reusing deep features.",
        {"scheduler": "DPMSolverMultistepScheduler", "num_inference_steps": 15},
        full_step_every=2,
    ),
    "draft": Preset(
        "6 steps of DPM-Solver++, the last unguided.",
        {"scheduler": "DPMSolverMultistepScheduler", "num_inference_steps": 6},
        guided_share=0.8,
    ),
}
