"""The work of one image, in floating-point operations, and how fast this machine can do any."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

#: What happens once an image, and the kinds of denoising step: whole or shallow, guided or not.
TEXT, DECODE, CHECK = "text", "decode", "check"
STEPS = {(False, 2): "step", (False, 1): "step unguided", (True, 2): "shallow step", (True, 1): "shallow unguided"}


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def roof(dtype: torch.dtype, device: torch.device, edge: int = 2048) -> float:
    """The best rate here of a matrix product or a convolution in `dtype`, in FLOP/s: the roof of any network."""
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    picture = torch.randn(2, 320, 64, 64, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(320, 320, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    linear = torch.randn(640, 320, 1, 1, device=device).to(dtype, memory_format=torch.channels_last)
    work: tuple[tuple[Callable[[], torch.Tensor], int], ...] = (
        (lambda: torch.mm(left, right), 2 * edge**3),
        (lambda: F.conv2d(picture, kernel, padding=1), 2 * 2 * 64 * 64 * 320 * 320 * 9),
        (lambda: F.conv2d(picture, linear), 2 * 2 * 64 * 64 * 320 * 640),
    )
    rates = []
    with torch.inference_mode():
        for run, count in work * 5:
            began = time.perf_counter()
            run()
            synchronize(device)
            rates.append(count / (time.perf_counter() - began))
    return max(rates)


def flops(folder: Path) -> dict[str, int]:
    """FLOP of each stage of one guided image of the checkpoint `folder`, counted without computing it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text = CLIPTextModel(CLIPTextModel.config_class.from_pretrained(folder / "text_encoder"))
        checker = StableDiffusionSafetyChecker(
            StableDiffusionSafetyChecker.config_class.from_pretrained(folder / "safety_checker")
        )
        size, edge = unet.config.sample_size, checker.config.vision_config.image_size
        latents = torch.empty(2, unet.config.in_channels, size, size)
        hidden = torch.empty(2, 77, unet.config.cross_attention_dim)
        calls = {
            TEXT: lambda: text(torch.zeros(2, 77, dtype=torch.long)),
            "step": lambda: unet(latents, torch.zeros(2), encoder_hidden_states=hidden),
            DECODE: lambda: vae.decode(latents[:1]),
            CHECK: lambda: checker.vision_model(torch.empty(1, 3, edge, edge)),
        }
        return {stage: _count(call) for stage, call in calls.items()}


def _count(call: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
