"""Who is measured: the catalog wrapper's way, diffusers in bfloat16, OpenVINO, and this project.

All take the same inputs; a stage gives back what it made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch.profiler import ProfilerActivity, profile

from sd_mlflow import features, pipeline
from sd_mlflow.bench.work import CHECK, DECODE, STEPS, TEXT
from sd_mlflow.safety import Pixels, SafetyChecker

PROMPT = "a photograph of an astronaut riding a horse"
Stages = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Inputs:
    """What every contender gets, from one seed: latents (2, 4, h, w), hidden states (2, 77, width), a picture."""

    latents: torch.Tensor
    hidden: torch.Tensor
    picture: Pixels

    @classmethod
    def of(cls, unet: Any, edge: int) -> Inputs:
        """Random inputs for `unet`, whose pictures have `edge` pixels."""
        rng = torch.Generator().manual_seed(0)
        size = unet.config.sample_size
        latents = torch.randn(1, unet.config.in_channels, size, size, generator=rng).repeat(2, 1, 1, 1)
        hidden = torch.randn(2, 77, unet.config.cross_attention_dim, generator=rng)
        pixels = torch.randint(0, 256, (edge, edge, 3), generator=rng, dtype=torch.uint8)
        return cls(latents, hidden, pixels.numpy())


def diffusers_as_it_is(folder: Path, device: torch.device, dtype: torch.dtype) -> Stages:
    """`StableDiffusionPipeline.from_pretrained`, called as Azure's catalog wrapper does, in `dtype`."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True).to(device)
    given = Inputs.of(pipe.unet, pipe.unet.config.sample_size * pipe.vae_scale_factor)
    latents, hidden = (tensor.to(device, dtype) for tensor in (given.latents, given.hidden))
    time = torch.full((2,), 500.0, device=device)
    share = given.picture[None].astype(np.float32) / 255
    return {
        # diffusers gives the prompt's hidden states first, and joins them the other way round.
        TEXT: lambda: torch.cat(pipe.encode_prompt(PROMPT, device, 1, True)[::-1]),
        "step": lambda: pipe.unet(latents, time, encoder_hidden_states=hidden).sample,
        DECODE: lambda: pipe.vae.decode(latents[:1]).sample,
        CHECK: lambda: pipe.run_safety_checker(share, device, dtype)[1],
    }


def ours(folder: Path, device: torch.device) -> Stages:
    """This project's pipeline, with every kind of step that a preset may take."""
    loaded = pipeline.load(folder, str(device))
    checker = SafetyChecker(loaded.safety_checker, loaded.feature_extractor)
    given = Inputs.of(loaded.unet, loaded.image_size)
    latents, hidden = (tensor.to(loaded.device, loaded.dtype) for tensor in (given.latents, given.hidden))
    time = torch.full((2,), 500.0, device=loaded.device)
    kept: dict[int, torch.Tensor] = {}

    def step(shallow: bool, rows: int) -> torch.Tensor:
        call = (loaded.unet, latents[:rows], time[:rows], hidden[:rows])
        if shallow and rows in kept:
            return features.shallow(*call, kept[rows])
        noise, kept[rows] = features.whole(*call)
        return noise

    return {
        TEXT: lambda: loaded.prompt_encoder.encode(PROMPT, ""),
        **{name: lambda kind=kind: step(*kind) for kind, name in STEPS.items()},  # type: ignore[misc]
        DECODE: lambda: loaded.vae.decode(latents[:1]).sample,
        CHECK: lambda: checker.apply(given.picture)[1].value,
    }


def trace(folder: Path, device: torch.device, file: Path) -> None:
    """Write where the time of one of our steps goes to `file`, for chrome://tracing or perfetto."""
    step = ours(folder, device)["step"]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.inference_mode():
        step()
        with profile(activities=activities) as recorded:
            step()
    recorded.export_chrome_trace(str(file))


def openvino(folder: Path, cache: Path) -> Stages:
    """OpenVINO in bfloat16 for UNet and decoder, converted once into `cache`; raises `ImportError` without it."""
    import openvino as ov

    core = ov.Core()
    loaded = pipeline.load(folder, "cpu", "float32", "eager")
    given = Inputs.of(loaded.unet, loaded.image_size)
    time = torch.full((2,), 500.0)
    networks: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {
        "step": (_Step(loaded.unet), (given.latents, time, given.hidden)),
        DECODE: (_Decode(loaded.vae), (given.latents[:1],)),
    }
    stages: Stages = {}
    for name, (network, inputs) in networks.items():
        file = cache / f"openvino-{name}.xml"
        if not file.exists():
            with torch.no_grad():
                ov.save_model(ov.convert_model(network, example_input=inputs), file, compress_to_fp16=True)
        compiled = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        arrays = [tensor.numpy() for tensor in inputs]
        stages[name] = lambda c=compiled, a=arrays: torch.from_numpy(c(a)[0])  # type: ignore[misc]
    return stages


class _Step(torch.nn.Module):
    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: torch.Tensor, time: torch.Tensor, hidden: torch.Tensor) -> Any:
        return self.unet(latents, time, encoder_hidden_states=hidden, return_dict=False)[0]


class _Decode(torch.nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> Any:
        return self.vae.decode(latents, return_dict=False)[0]
