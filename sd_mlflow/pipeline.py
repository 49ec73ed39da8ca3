"""A checkpoint folder becomes components on a device, in the dtype they run in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sd_mlflow import execution, manifest
from sd_mlflow.errors import CheckpointError, PackageError
from sd_mlflow.parameters import SCHEDULERS
from sd_mlflow.prompts import PromptEncoder


@dataclass(frozen=True)
class Pipeline:
    """The components of one checkpoint. Not thread-safe: one owner runs them."""

    manifest: manifest.Manifest
    prompt_encoder: PromptEncoder
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_name: str
    scheduler_config: Mapping[str, Any]
    safety_checker: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessorPil | None
    device: torch.device
    dtype: torch.dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels, along an edge, of one latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def image_size(self) -> int:
        """Pixels of an edge of the images that the checkpoint was made for."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor


def load(folder: Path, device: str = "auto", dtype: str = "auto", how: str = "auto") -> Pipeline:
    """Check `folder` against its manifest and load its seven components, without network and without pickle.

    `device`, `dtype` and `how` (the execution) are those of `sd_mlflow.settings.Settings`; weights are
    cast only if they are stored in another dtype. Raises `IntegrityError` for a changed file,
    `CheckpointError` for a component that lacks a tensor.
    """
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checked = manifest.verify(folder)
    target = choose_device(device)
    kind = load_dtype(checked.dtype, target, dtype)
    scheduler = scheduler_config(folder)
    run_by = execution.best(target, kind) if how == "auto" else execution.Execution(how)
    if run_by is execution.Execution.PACKED and target.type != "cpu":
        raise PackageError(f"execution packed runs on a CPU, not on {target.type}: leave it at auto")
    checker = extractor = None
    if checked.safety_checker:
        checker = _component(StableDiffusionSafetyChecker, folder / "safety_checker", target, dtype=kind)
        extractor = CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)
    if run_by is execution.Execution.COMPILED and os.access(folder.parent, os.W_OK):
        # Beside the package, so that the next process need not compile again.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.parent / "compiled"))
    unet = _component(UNet2DConditionModel, folder / "unet", target, torch_dtype=kind)
    vae = _component(AutoencoderKL, folder / "vae", target, torch_dtype=kind)
    # Weights that need no cast are the mapped pages of their files.
    mapped = checked.dtype == str(kind).removeprefix("torch.") and target.type == "cpu"
    for model in (unet, vae):
        execution.prepare(model, run_by, mapped)
    return Pipeline(
        manifest=checked,
        prompt_encoder=PromptEncoder(
            CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            _component(CLIPTextModel, folder / "text_encoder", target, dtype=kind),
        ),
        unet=unet,
        vae=vae,
        scheduler_name=scheduler["_class_name"],
        scheduler_config=scheduler,
        safety_checker=checker,
        feature_extractor=extractor,
        device=target,
        dtype=kind,
    )


def _component(cls: Any, folder: Path, device: torch.device, **dtype: torch.dtype) -> Any:
    """One model, in evaluation mode; no tensor of it may be left at random."""
    try:
        model, found = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **dtype
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{folder.name} cannot be loaded: {reason}") from error
    absent = [*found["missing_keys"], *found["mismatched_keys"]]
    if absent:
        raise CheckpointError(f"{folder.name} lacks {len(absent)} tensors that its config needs: {absent[:3]}")
    return model.eval().requires_grad_(False).to(device)


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration, old ones mended as diffusers' `StableDiffusionPipeline` mends them."""
    file = folder / "scheduler" / SCHEDULER_CONFIG_NAME
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if config.get("_class_name") not in SCHEDULERS:
        raise CheckpointError(f"scheduler {config.get('_class_name')} is not one of {', '.join(SCHEDULERS)}")
    return config | {"steps_offset": 1, "clip_sample": False}


def choose_device(name: str) -> torch.device:
    """The device that `Settings.device` names; auto: a GPU if there is one."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_dtype(stored: str, device: torch.device, name: str = "auto") -> torch.dtype:
    """What weights that are stored as `stored` run in on `device`, `name` being `Settings.dtype`."""
    if name == "auto":
        # A CPU computes float16 no faster than float32, and few of them bfloat16.
        narrow = stored == "float16" or (stored == "bfloat16" and not execution.computes_bfloat16())
        name = "float32" if narrow and device.type == "cpu" else stored
    dtype: torch.dtype = getattr(torch, name)
    return dtype
