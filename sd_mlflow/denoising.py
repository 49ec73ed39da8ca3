"""From noise to pixels: one image's way, and the UNet calls that many images share.

The unit of work is one denoising step of one image. Every image has its own scheduler, noise,
guidance and preset, so that images at different steps share a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from sd_mlflow import features
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.presets import PRESETS
from sd_mlflow.safety import Pixels, to_pixels
from sd_mlflow.schedulers import ImageScheduler


class Denoising:
    """An image on its way: `latents`, (1, 4, height/8, width/8) float32, and all that moves them on."""

    #: Noise at first; there from the first step on, as are the two below.
    latents: torch.Tensor
    #: Of the prompts, as `PromptEncoder.encode` gives them.
    embeddings: torch.Tensor
    #: Of the last whole step, as `sd_mlflow.features` gives them, if the preset wants them again.
    features: torch.Tensor
    #: Of the last step: what the UNet saw, the noise it found in that, and the timestep.
    last: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def __init__(self, request: ImageRequest, pipeline: Pipeline) -> None:
        """Raises `InvalidParameter` for a solver that cannot do so many steps."""
        self.request = request
        self.preset = PRESETS[request.preset]
        self.scheduler = ImageScheduler(
            request.scheduler or pipeline.scheduler_name,
            pipeline.scheduler_config,
            request.num_inference_steps,
            pipeline.device,
        )
        self.steps = len(self.scheduler.timesteps)
        self.steps_done = 0
        # A CPU generator draws the same noise on every device, and diffusers draws this shape.
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        #: Height and width of the latents.
        self.size = tuple(
            (edge or pipeline.image_size) // pipeline.vae_scale_factor for edge in (request.height, request.width)
        )

    @property
    def timestep(self) -> torch.Tensor:
        """Of the next step, ()."""
        return self.scheduler.timesteps[self.steps_done]

    @property
    def finished(self) -> bool:
        """Whether the latents are those of the picture."""
        return self.steps_done == self.steps

    @property
    def expected(self) -> torch.Tensor:
        """The latents of the picture as the last step foresaw them, (1, 4, height/8, width/8) float32."""
        seen, noise, timestep = self.last
        signal = self.scheduler.signal(timestep)
        return (seen - (1 - signal).sqrt() * noise) / signal.sqrt()

    @property
    def shallow(self) -> bool:
        """Whether the next step reuses features."""
        return self.preset.reuses_features(self.steps_done)

    @property
    def rows(self) -> int:
        """Rows of the next UNet call that are this image's: two if it is guided (arXiv:2207.12598)."""
        return 2 if self.request.guided and self.preset.guides(self.steps_done, self.steps) else 1


class Denoiser:
    """Moves images on with one pipeline. Not thread-safe: one owner runs it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def step(self, batch: Sequence[Denoising]) -> None:
        """One step of each image of `batch`, whose latents have one size."""
        for image in batch:
            if image.steps_done == 0:
                self._begin(image)

        def call(image: Denoising) -> tuple[int, bool]:
            return image.embeddings.shape[1], image.shallow

        for (_, shallow), alike in itertools.groupby(sorted(batch, key=call), key=call):
            self._advance(list(alike), shallow)

    def decode(self, image: Denoising) -> Pixels | None:
        """The picture, (height, width, 3) uint8, or None if it is not a number."""
        vae = self.pipeline.vae
        latents = (image.latents / vae.config.scaling_factor).to(self.pipeline.dtype)
        decoded = vae.decode(latents).sample[0].float()
        if not decoded.isfinite().all():
            return None
        return to_pixels(decoded.permute(1, 2, 0))

    def _begin(self, image: Denoising) -> None:
        """Draw the noise and read the prompts."""
        request, pipeline = image.request, self.pipeline
        noise = torch.randn(1, pipeline.unet.config.in_channels, *image.size, generator=image.generator)
        image.latents = noise.to(pipeline.device) * image.scheduler.init_noise_sigma
        negative = request.negative_prompt if request.guided else None
        image.embeddings = pipeline.prompt_encoder.encode(request.prompt, negative)

    def _advance(self, batch: Sequence[Denoising], shallow: bool) -> None:
        """One UNet call, whole or shallow, and one solver step of each image."""
        rows = [image.rows for image in batch]
        inputs, timesteps, hidden = [], [], []
        for image, count in zip(batch, rows, strict=True):
            inputs += [image.scheduler.scale_model_input(image.latents, image.timestep)] * count
            timesteps += [image.timestep.float()] * count
            hidden.append(image.embeddings[-count:])
        call = (
            self.pipeline.unet,
            torch.cat(inputs).to(self.pipeline.dtype),
            torch.stack(timesteps),
            torch.cat(hidden),
        )
        if shallow:
            kept = [image.features[-count:] for image, count in zip(batch, rows, strict=True)]
            predicted = features.shallow(*call, torch.cat(kept))
        else:
            predicted, deep = features.whole(*call)
            for image, kept_now in zip(batch, torch.split(deep, rows), strict=True):
                if image.preset.full_step_every > 1:
                    image.features = kept_now
        ends = itertools.accumulate(rows)
        for image, end, noise in zip(batch, ends, torch.split(predicted.float(), rows), strict=True):
            if len(noise) == 2:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + image.request.guidance_scale * (conditional - unconditional)
            image.last = inputs[end - 1], noise, image.timestep
            image.latents = image.scheduler.step(noise, image.timestep, image.latents, image.generator)
            image.steps_done += 1
