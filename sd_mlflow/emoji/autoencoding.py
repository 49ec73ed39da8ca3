"""The autoencoder: its training, and pictures to latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.fit import fit, normal
from sd_mlflow.emoji.scenes import Scene
from sd_mlflow.images import psnr

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

    def loss(vae: AutoencoderKL, rng: np.random.Generator, size: int) -> torch.Tensor:
        corners = rng.integers(0, images.shape[-1] - _CROP + 1, (size, 2))
        chosen = rng.integers(0, len(images), size)
        crops = [images[i, :, y : y + _CROP, x : x + _CROP] for i, (y, x) in zip(chosen, corners, strict=True)]
        target = normalized(torch.stack(crops).to(device))
        posterior = vae.encode(target).latent_dist
        latents = posterior.mean + posterior.std * normal(rng, posterior.mean)
        error = vae.decode(latents).sample.float() - target
        total: torch.Tensor = _distance(error, square=0.5) + 1e-6 * posterior.kl().mean()
        return total

    fit("autoencoder", vae, loss, steps=steps, batch=batch, learning_rate=1e-3, folder=folder)
    return vae


def train_decoder(
    vae: AutoencoderKL,
    images: torch.Tensor,
    latents: tuple[torch.Tensor, torch.Tensor],
    *,
    steps: int,
    batch: int,
    folder: Path,
) -> None:
    """Train the decoder of `vae`, in place, on whole `images` (uint8): their `latents` stay what they are.

    `latents` are mean and deviation, each (n, 4, h/8, w/8). The square weighs ten times what it
    does in `train_autoencoder`: what is left is wrong in few places, and there by much.
    """
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss(vae: AutoencoderKL, rng: np.random.Generator, size: int) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(0, len(images), size))
        mean, deviation = (part[chosen].to(vae.device) for part in latents)
        decoded = vae.decode(mean + deviation * normal(rng, mean)).sample.float()
        return _distance(decoded - normalized(images[chosen].to(vae.device)), square=5.0)

    fit("decoder", vae, loss, steps=steps, batch=batch, learning_rate=5e-4, folder=folder)


def _distance(error: torch.Tensor, *, square: float) -> torch.Tensor:
    """L1, L1 of the gradients, and `square` times the square, of `error` (n, 3, h, w) in -2 to 2."""
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    distance: torch.Tensor = error.abs().mean() + edges + square * error.square().mean()
    return distance


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
def sharpness(vae: AutoencoderKL, images: torch.Tensor, *, silent: bool = False) -> float:
    """The mean PSNR, in dB, of `images` (uint8) through the float32 `vae` and back."""
    decoded = [
        denormalized(vae.decode(vae.encode(normalized(chunk)).latent_dist.mean).sample)
        for chunk in track(torch.split(images, _CHUNK), description="autoencoder", disable=silent)
    ]
    return fmean(psnr(one.numpy(), other.numpy()) for one, other in zip(images, torch.cat(decoded), strict=True))


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
