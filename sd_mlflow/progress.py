"""What a caller sees while its images are made: steps, and previews that cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sd_mlflow.parameters import ImageRequest
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.safety import Pixels, to_pixels


@dataclass(frozen=True)
class StepProgress:
    """Step `step` of `steps` of an image is done."""

    request: ImageRequest
    step: int
    steps: int
    _preview: Callable[[], Pixels] = field(repr=False)

    def preview(self) -> Pixels:
        """The image as it is now, (height/8, width/8, 3) uint8; call it while the watcher runs, not later.

        Checked as every image is: black if flagged. Raises `SafetyUnavailable` if it cannot be.
        """
        return self._preview()


#: Called after each step of each image, by the engine's own thread: be quick.
Watcher = Callable[[StepProgress], None]


class LatentProjection:
    """The best linear guess of a pixel's colour from its latent: fitted to the autoencoder when first used."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._weights: torch.Tensor | None = None

    def __call__(self, latents: torch.Tensor) -> Pixels:
        """`latents`, (1, 4, h, w) float32, as (h, w, 3) uint8."""
        if self._weights is None:
            self._weights = self._fit()
        return to_pixels((_with_one(latents) @ self._weights).reshape(*latents.shape[2:], 3))

    def _fit(self) -> torch.Tensor:
        """Least squares over what the autoencoder makes of smooth noise, (5, 3)."""
        pipeline, vae = self._pipeline, self._pipeline.vae
        noise = torch.randn(1, vae.config.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
        latents = torch.nn.functional.interpolate(noise, scale_factor=4, mode="bilinear").to(pipeline.device)
        scaled = (latents / vae.config.scaling_factor).to(pipeline.dtype)
        decoded = vae.decode(scaled).sample.float()
        small = torch.nn.functional.avg_pool2d(decoded, pipeline.vae_scale_factor)
        # On the CPU: not every device solves.
        solved: torch.Tensor = torch.linalg.lstsq(_with_one(latents).cpu(), small.flatten(2)[0].T.cpu()).solution
        return solved.to(latents.device)


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """(1, 4, h, w) as rows of 4 and a one, (h * w, 5)."""
    rows = latents.flatten(2)[0].T
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
