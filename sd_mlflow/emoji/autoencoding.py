"""The autoencoder: its training, and pictures to latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.fit import fit
from sd_mlflow.emoji.scenes import Scene

#: Edge of the crops that the autoencoder learns from: it is convolutional, so they serve whole pictures.
_CROP = 64
_CHUNK = 64


def pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """`scenes` as uint8, shape (n, 3, SIZE, SIZE)."""
    return torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes])).permute(0, 3, 1, 2)


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0 to 255 as float32 in -1 to 1, channels last in memory."""
    return images.float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)


def denormalized(pictures: torch.Tensor) -> torch.Tensor:
    """Floating point in -1 to 1, and beyond, as uint8."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def train_autoencoder(
    images: torch.Tensor, *, steps: int, batch: int, folder: Path, device: torch.device
) -> AutoencoderKL:
    """Train on random crops of `images` (uint8); L1, L1 of the gradients, half the square, a weak KL."""
    vae = networks.autoencoder().to(device, memory_format=torch.channels_last)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        corners = rng.integers(0, images.shape[-1] - _CROP + 1, (batch, 2))
        chosen = rng.integers(0, len(images), batch)
        crops = [images[i, :, y : y + _CROP, x : x + _CROP] for i, (y, x) in zip(chosen, corners, strict=True)]
        target = normalized(torch.stack(crops).to(device))
        posterior = vae.encode(target).latent_dist
        error = vae.decode(posterior.sample()).sample.float() - target
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        distance = error.abs().mean() + edges + 0.5 * error.square().mean()
        total: torch.Tensor = distance + 1e-6 * posterior.kl().mean()
        return total

    fit("autoencoder", vae, loss, steps=steps, learning_rate=1e-3, folder=folder)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the latents of `images`, float32 on the CPU, each (n, 4, h/8, w/8)."""
    means, deviations = [], []
    for chunk in track(torch.split(images, _CHUNK), description="latents"):
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            posterior = vae.encode(normalized(chunk.to(vae.device))).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """`images` (uint8) through the autoencoder and back, with noise on the latents: as generated ones look."""
    results = []
    for number, chunk in enumerate(track(torch.split(images, _CHUNK), description="pictures")):
        generator = torch.Generator().manual_seed(number)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            latents = vae.encode(normalized(chunk.to(vae.device))).latent_dist.mean
            strength = 0.3 * torch.rand(len(chunk), 1, 1, 1, generator=generator)
            noise = strength * torch.randn(latents.shape, generator=generator)
            results.append(denormalized(vae.decode(latents + noise.to(vae.device)).sample).cpu())
    return torch.cat(results)
