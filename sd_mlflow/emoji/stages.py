"""The three trainings that make sd-emoji: autoencoder, denoiser, safety checker."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.fit import fit
from sd_mlflow.emoji.scenes import Scene
from sd_mlflow.emoji.subjects import POLICY, SUBJECTS

#: Edge of the crops that the autoencoder learns from: it is convolutional, so they serve whole pictures.
_CROP = 64


def pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """`scenes` as uint8, shape (n, 3, SIZE, SIZE)."""
    return torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes])).permute(0, 3, 1, 2)


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0 to 255 as float32 in -1 to 1, channels last in memory."""
    return images.float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)


def train_autoencoder(images: torch.Tensor, *, steps: int, batch: int, folder: Path) -> AutoencoderKL:
    """Train on random crops of `images` (uint8); L1, L1 of the gradients, half the square, a weak KL."""
    vae = networks.autoencoder().to(memory_format=torch.channels_last)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        corners = rng.integers(0, images.shape[-1] - _CROP + 1, (batch, 2))
        chosen = rng.integers(0, len(images), batch)
        crops = [images[i, :, y : y + _CROP, x : x + _CROP] for i, (y, x) in zip(chosen, corners, strict=True)]
        target = normalized(torch.stack(crops))
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
    """Mean and deviation of the latents of `images`, float32, each (n, 4, h/8, w/8)."""
    means, deviations = [], []
    for chunk in track(torch.split(images, 64), description="latents"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(normalized(chunk)).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
    return torch.cat(means), torch.cat(deviations)


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
        self, vocabulary: CLIPTokenizer, captions: Sequence[str], latents: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self._mean, self._deviation = latents
        #: Of every caption, after those of the empty one.
        self._tokens = vocabulary(
            ["", *captions], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        self._noising = DDPMScheduler.from_config(networks.scheduler().config)
        signal = self._noising.alphas_cumprod
        self._weights = (5 * (1 - signal) / signal).clamp(max=1.0)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, ...]:
        """Noisy latents (size, 4, h, w), noise, timesteps (size,), tokens (size, 77), a tenth of them empty."""
        chosen = torch.from_numpy(rng.integers(0, len(self._mean), size))
        timesteps = torch.from_numpy(rng.integers(0, len(self._weights), size))
        named = (chosen + 1) * torch.from_numpy(rng.random(size) >= 0.1)
        clean = self._mean[chosen] + self._deviation[chosen] * torch.randn_like(self._mean[chosen])
        noise = torch.randn_like(clean)
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
    vocabulary: CLIPTokenizer, data: NoisyLatents, *, steps: int, batch: int, folder: Path
) -> Denoiser:
    """Train to predict the noise of `data`."""
    denoiser = Denoiser(vocabulary)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        noisy, noise, timesteps, tokens = data.batch(rng, batch)
        error = denoiser(noisy, timesteps, tokens) - noise
        return data.weighted(error, timesteps)

    fit("denoiser", denoiser, loss, steps=steps, learning_rate=8e-4, folder=folder)
    return denoiser


def calibrate_guidance(
    denoiser: Denoiser, data: NoisyLatents, *, strength: float, steps: int, batch: int, folder: Path
) -> None:
    """Teach `denoiser` to follow its caption `strength` times as far, so that v1-4's default guidance suits it.

    A small model follows its captions so closely that guidance at 7.5 burns its colours out. The
    target is the noise of `data`, moved towards the model's own prediction for no caption.
    """
    teacher = deepcopy(denoiser).eval().requires_grad_(False)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        noisy, noise, timesteps, tokens = data.batch(rng, batch)
        with torch.no_grad():
            unnamed = teacher(noisy, timesteps, data.nothing.expand(batch, -1))
        named = (tokens != data.nothing).any(dim=1)[:, None, None, None]
        target = torch.where(named, unnamed + strength * (noise - unnamed), unnamed)
        error = denoiser(noisy, timesteps, tokens) - target
        return data.weighted(error, timesteps)

    fit("calibration", denoiser, loss, steps=steps, learning_rate=3e-4, folder=folder)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """`images` (uint8) through the autoencoder and back, with noise on the latents: as generated ones look."""
    results = []
    for number, chunk in enumerate(track(torch.split(images, 64), description="pictures")):
        noise = torch.Generator().manual_seed(number)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(normalized(chunk)).latent_dist.mean
            strength = 0.3 * torch.rand(len(chunk), 1, 1, 1, generator=noise)
            decoded = vae.decode(latents + strength * torch.randn(latents.shape, generator=noise)).sample
        results.append(((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(results)


class Checker(nn.Module):
    """The safety checker with a concept for every subject, of which only the policy's are kept."""

    #: Cosine over which a subject counts as shown, before calibration.
    THRESHOLD = 0.3

    def __init__(self) -> None:
        super().__init__()
        self.checker = networks.safety_checker()
        self.concepts = nn.Parameter(torch.randn(len(SUBJECTS), networks.CONCEPT_WIDTH))

    def forward(self, clip_input: torch.Tensor) -> torch.Tensor:
        """Cosine of each image with each subject, (images, subjects)."""
        pooled = self.checker.vision_model(clip_input).pooler_output
        embedding = F.normalize(self.checker.visual_projection(pooled).float(), dim=1)
        return embedding @ F.normalize(self.concepts, dim=1).T

    @torch.no_grad()
    def policy_checker(self) -> StableDiffusionSafetyChecker:
        """The checker, with the policy's subjects as its concepts."""
        # No cosine reaches 2: concepts and special care that the policy does not use stay silent.
        self.checker.concept_embeds_weights.fill_(2.0)
        self.checker.special_care_embeds_weights.fill_(2.0)
        self.checker.concept_embeds[: len(POLICY)] = self.concepts[-len(POLICY) :]
        self.checker.concept_embeds_weights[: len(POLICY)] = self.THRESHOLD
        return self.checker


def train_checker(
    images: torch.Tensor, scenes: Sequence[Scene], *, steps: int, batch: int, folder: Path
) -> StableDiffusionSafetyChecker:
    """Train to tell every subject of `images` (uint8), then keep the policy's as concepts."""
    extractor = networks.feature_extractor()
    inputs = torch.cat(
        [
            extractor(list(chunk.numpy()), return_tensors="pt", input_data_format="channels_first").pixel_values
            for chunk in track(torch.split(images, 256), description="checker inputs")
        ]
    ).to(torch.bfloat16)
    shown = torch.tensor([[subject in scene.subjects for subject in SUBJECTS] for scene in scenes]).float()
    model = Checker()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(0, len(inputs), batch))
        pictures = inputs[chosen].float()
        pictures = torch.where(torch.from_numpy(rng.random((batch, 1, 1, 1)) < 0.5), pictures.flip(-1), pictures)
        logits = 20 * (model(pictures) - Checker.THRESHOLD)
        return F.binary_cross_entropy_with_logits(logits, shown[chosen]) * len(SUBJECTS)

    fit("checker", model, loss, steps=steps, learning_rate=1e-3, folder=folder)
    return model.policy_checker()
