"""What a denoiser in training draws: a contact sheet now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.autoencoding import denormalized
from sd_mlflow.emoji.subjects import SIZE
from sd_mlflow.images import contact_sheet

PROMPTS = (
    "a photograph of an astronaut riding a horse",
    "a photograph of a cat riding a horse",
    "a photograph of a lion",
    "a cartoon of a frog in the rain",
    "a flat icon of a panda riding a scooter",
    "a photograph of a wizard riding a whale at night",
    "a photograph of two apples on the grass",
    "a cartoon of three stars in space",
    "a photograph of a fox inside a bucket",
    "a photograph of a robot holding a balloon",
    "a photograph of a bear behind a cactus in the desert",
    "a flat icon of a penguin on top of a cake",
)
_STEPS, _GUIDANCE, _COLUMNS = 16, 3.0, 6


@dataclass(frozen=True)
class Previews:
    """Draws `PROMPTS` with the denoiser as it is, into `folder/NAME-STEP.png`."""

    vae: AutoencoderKL
    vocabulary: CLIPTokenizer
    folder: Path

    def __call__(self, denoiser: nn.Module, step: int) -> None:
        """Write the sheet of `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = draw(denoiser, self.vae, self.vocabulary, PROMPTS)
        images = [Image.fromarray(picture) for picture in pictures.permute(0, 2, 3, 1).numpy()]
        contact_sheet(images, _COLUMNS, edge=SIZE).save(self.folder / f"{step:06}.png")


@torch.no_grad()
def draw(
    denoiser: nn.Module, vae: AutoencoderKL, vocabulary: CLIPTokenizer, prompts: Sequence[str]
) -> torch.Tensor:
    """A picture of each of `prompts`, uint8 on the CPU, (n, 3, h, w): DDIM, few steps, low guidance."""
    device, count = vae.device, len(prompts)
    tokens = vocabulary([*prompts] + [""] * count, padding="max_length", return_tensors="pt").input_ids
    size = (count, vae.config.latent_channels, networks.LATENT_SIZE, networks.LATENT_SIZE)
    latents = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    solver = DDIMScheduler.from_config(networks.scheduler().config)
    solver.set_timesteps(_STEPS)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        for timestep in solver.timesteps:
            many = timestep.expand(2 * count).to(device)
            noise, unnamed = denoiser(torch.cat([latents, latents]), many, tokens.to(device)).chunk(2)
            latents = solver.step(unnamed + _GUIDANCE * (noise - unnamed), timestep, latents).prev_sample
        return denormalized(vae.decode(latents).sample).cpu()
