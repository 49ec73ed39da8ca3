"""Stable Diffusion v1-4 at full size with random weights: what it draws is noise, but it weighs as much.

1.3 billion parameters, 5.5 GB in float32, written a tensor at a time. For tests of memory and
speed where the real weights cannot be had.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

from sd_mlflow import checkpoint, manifest, tensors
from sd_mlflow.emoji import networks

_TEXT_WIDTH = 768


def build(folder: Path, seed: int = 0, dtype: manifest.DTypeName = "float32") -> None:
    """Write the checkpoint, in `dtype`, to the new folder `folder`; the same weights for the same `seed`.

    The tokenizer is sd-emoji's: v1-4's vocabulary is not this project's to ship.
    """
    shutil.copytree(checkpoint.find(checkpoint.SD_EMOJI).folder / "tokenizer", folder / "tokenizer")
    networks.scheduler().save_pretrained(folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    networks.write_model_index(folder)
    generator = torch.Generator().manual_seed(seed)
    entries: dict[str, manifest.FileEntry] = {}
    for component, (file, make) in _NETWORKS.items():
        with torch.device("meta"):
            network = make()
        save_config = network.save_config if isinstance(network, ModelMixin) else network.config.save_pretrained
        save_config(folder / component)
        stored = [
            tensors.StoredTensor(name, torch.float32, tuple(like.shape), _maker(name, like.shape, generator))
            for name, like in network.state_dict().items()
        ]
        name = f"{component}/{file}.safetensors"
        entries[name] = tensors.write(folder / name, stored, getattr(torch, dtype), lambda _: None)
    manifest.write(
        folder,
        name="full-size",
        revision=None,
        dtype=dtype,
        safety_checker=True,
        known=entries,
    )


def _maker(name: str, shape: torch.Size, generator: torch.Generator) -> Callable[[], torch.Tensor]:
    """What makes the weight `name`: random matrices, norms that change nothing, and no biases.

    The safety checker's thresholds come out as 1, which no cosine passes: nothing is flagged.
    """

    def make() -> torch.Tensor:
        if len(shape) > 1:
            return torch.empty(shape).normal_(0, 0.02, generator=generator)
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)

    return make


def _text_encoder() -> CLIPTextModel:
    """The text half of CLIP ViT-L/14."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=_TEXT_WIDTH,
            intermediate_size=4 * _TEXT_WIDTH,
            projection_dim=_TEXT_WIDTH,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
        )
    )


def _unet() -> UNet2DConditionModel:
    """Latents of 64x64, 860 million parameters."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=8,
    )


def _vae() -> AutoencoderKL:
    """Pictures of 512x512, 84 million parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )


def _safety_checker() -> StableDiffusionSafetyChecker:
    """The vision half of CLIP ViT-L/14, 304 million parameters."""
    vision = CLIPVisionConfig(
        image_size=224,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=_TEXT_WIDTH,
    )
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=_TEXT_WIDTH))


_NETWORKS = {
    "text_encoder": ("model", _text_encoder),
    "unet": ("diffusion_pytorch_model", _unet),
    "vae": ("diffusion_pytorch_model", _vae),
    "safety_checker": ("model", _safety_checker),
}
