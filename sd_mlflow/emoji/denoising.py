"""The denoiser: UNet and text encoder, trained together on cached latents, then calibrated for guidance."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import nn
from transformers import CLIPTokenizer

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.fit import Preview, fit, normal


class Denoiser(nn.Module):
    """UNet and text encoder, trained together to predict the noise."""

    def __init__(self, vocabulary: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = networks.text_encoder(vocabulary)
        self.unet = networks.unet().to(memory_format=torch.channels_last)
        # Faster to train on a CPU than the fused attention, whose backward pass is slow there.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder.set_attn_implementation("eager")

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted noise, float32, of `noisy` (n, 4, h, w) at `timesteps` (n,) for `tokens` (n, 77)."""
        hidden = self.text_encoder(tokens)[0]
        predicted: torch.Tensor = self.unet(noisy, timesteps, hidden).sample.float()
        return predicted


class NoisyLatents:
    """Captions and latents of a data set, and batches of them on v1-4's noise schedule."""

    def __init__(
        self,
        vocabulary: CLIPTokenizer,
        captions: Sequence[str],
        latents: tuple[torch.Tensor, torch.Tensor],
        shares: NDArray[np.float64],
        device: torch.device,
    ) -> None:
        #: How often each is drawn; they sum up to 1.
        self._shares = shares
        self._mean, self._deviation = (part.to(device) for part in latents)
        #: Of every caption, after those of the empty one.
        self._tokens = vocabulary(
            ["", *captions], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(device)
        self._noising = DDPMScheduler.from_config(networks.scheduler().config)
        signal = self._noising.alphas_cumprod
        self._weights = (5 * (1 - signal) / signal).clamp(max=1.0).to(device)
        self._device = device

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, ...]:
        """Noisy latents (size, 4, h, w), noise, timesteps (size,), tokens (size, 77), a tenth of them empty."""
        chosen = torch.from_numpy(rng.choice(len(self._mean), size, p=self._shares)).to(self._device)
        timesteps = torch.from_numpy(rng.integers(0, len(self._weights), size)).to(self._device)
        named = (chosen + 1) * torch.from_numpy(rng.random(size) >= 0.1).to(self._device)
        clean = self._mean[chosen] + self._deviation[chosen] * normal(rng, self._mean[chosen])
        noise = normal(rng, clean)
        noisy = self._noising.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        return noisy, noise, timesteps, self._tokens[named]

    def weighted(self, error: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The mean square of `error` (n, 4, h, w), with min-SNR weights (arXiv:2303.09556) at 5 by timestep."""
        mean: torch.Tensor = (error.square().mean(dim=(1, 2, 3)) * self._weights[timesteps]).mean()
        return mean

    @property
    def nothing(self) -> torch.Tensor:
        """The tokens of the empty caption, (1, 77)."""
        empty: torch.Tensor = self._tokens[:1]
        return empty


def train_denoiser(
    denoiser: Denoiser, data: NoisyLatents, *, steps: int, batch: int, folder: Path, preview: Preview | None = None
) -> None:
    """Train `denoiser`, in place, to predict the noise of `data`."""

    def loss(denoiser: Denoiser, rng: np.random.Generator, size: int) -> torch.Tensor:
        noisy, noise, timesteps, tokens = data.batch(rng, size)
        error = denoiser(noisy, timesteps, tokens) - noise
        return data.weighted(error, timesteps)

    fit("denoiser", denoiser, loss, steps=steps, batch=batch, learning_rate=8e-4, folder=folder, preview=preview)


def calibrate_guidance(
    denoiser: Denoiser, data: NoisyLatents, *, strength: float, steps: int, batch: int, folder: Path
) -> None:
    """Teach `denoiser` to follow its caption `strength` times as far, so that v1-4's default guidance suits it.

    A small model follows its captions so closely that guidance at 7.5 burns its colours out. The
    target is the noise of `data`, moved towards the model's own prediction for no caption.
    """
    teacher = deepcopy(denoiser).eval().requires_grad_(False)

    def loss(denoiser: Denoiser, rng: np.random.Generator, size: int) -> torch.Tensor:
        noisy, noise, timesteps, tokens = data.batch(rng, size)
        with torch.no_grad():
            unnamed = teacher(noisy, timesteps, data.nothing.expand(size, -1))
        named = (tokens != data.nothing).any(dim=1)[:, None, None, None]
        target = torch.where(named, unnamed + strength * (noise - unnamed), unnamed)
        error = denoiser(noisy, timesteps, tokens) - target
        return data.weighted(error, timesteps)

    fit("calibration", denoiser, loss, steps=steps, batch=batch, learning_rate=3e-4, folder=folder)
