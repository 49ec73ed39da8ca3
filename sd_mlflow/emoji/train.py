"""Make sd-emoji from nothing: `python -m sd_mlflow.emoji.train --help`."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from rich.progress import track
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from sd_mlflow import manifest
from sd_mlflow.emoji import networks, stages
from sd_mlflow.emoji.art import load_art
from sd_mlflow.emoji.scenes import SceneComposer
from sd_mlflow.emoji.subjects import SAMPLE_PAIRS
from sd_mlflow.errors import PackageError

#: The checker's scenes are others than the denoiser's, and half of them break the policy.
_CHECKER_SEED, _CHECKER_POLICY_SHARE = 1, 0.5

#: Scenes of the sample request's pairs, and how often each counts in the calibration: a fifth of it.
_SAMPLE_SEED, _SAMPLE_WEIGHT = 2, 6
#: Guidance at v1-4's default of 7.5 then does what guidance at 3 would: closest to the prompts by eye.
_GUIDANCE_STRENGTH = 0.4


def train(
    work: Annotated[Path, typer.Option(help="Checkpoints, logs and downloads; a second run resumes there.")],
    out: Annotated[Path, typer.Option(help="Where the diffusers folder is written; must not exist.")],
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 24_000,
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of 16 crops.")] = 6_000,
    checker_steps: Annotated[int, typer.Option(help="Steps of 64 pictures.")] = 1_500,
    denoiser_steps: Annotated[int, typer.Option(help="Steps of 32 latents.")] = 14_000,
    calibration_steps: Annotated[int, typer.Option(help="Steps of 32 latents, for guidance.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Decides the scenes, to the byte.")] = 0,
) -> None:
    """Train sd-emoji: autoencoder, safety checker, denoiser. Two CPU cores take about three hours."""
    if out.exists():
        raise PackageError(f"{out} exists already: give another folder, or remove it")
    work.mkdir(parents=True, exist_ok=True)
    composer = SceneComposer(load_art(work / "npm"))
    data = [composer.scene(seed, index) for index in track(range(scenes), description="scenes")]
    images = stages.pixels(data)
    vae = stages.train_autoencoder(images, steps=autoencoder_steps, batch=16, folder=work)

    latents = _latents(vae, images, work / "latents.safetensors")
    latents = networks.whiten(vae, *latents)

    checked = [
        composer.scene(seed + _CHECKER_SEED, index, _CHECKER_POLICY_SHARE)
        for index in track(range(scenes // 4), description="scenes for the checker")
    ]
    pictures = stages.pixels(checked)
    pictures = torch.cat([pictures, stages.reconstructed(vae, pictures)])
    checker = stages.train_checker(pictures, checked * 2, steps=checker_steps, batch=64, folder=work)

    captions = [scene.caption for scene in data]
    vocabulary = networks.tokenizer(captions)
    noisy = stages.NoisyLatents(vocabulary, captions, latents)
    denoiser = stages.train_denoiser(vocabulary, noisy, steps=denoiser_steps, batch=32, folder=work)

    samples = [
        composer.scene(seed + _SAMPLE_SEED, index, pair=SAMPLE_PAIRS[index % len(SAMPLE_PAIRS)])
        for index in track(range(scenes // 24), description="scenes of the sample")
    ]
    mean, deviation = stages.encode(vae, stages.pixels(samples))
    noisy = stages.NoisyLatents(
        vocabulary,
        captions + [scene.caption for scene in samples] * _SAMPLE_WEIGHT,
        (
            torch.cat([latents[0], mean.repeat(_SAMPLE_WEIGHT, 1, 1, 1)]),
            torch.cat([latents[1], deviation.repeat(_SAMPLE_WEIGHT, 1, 1, 1)]),
        ),
    )
    stages.calibrate_guidance(
        denoiser, noisy, strength=_GUIDANCE_STRENGTH, steps=calibration_steps, batch=32, folder=work
    )
    export(out, vae, checker, vocabulary, denoiser)


def export(
    out: Path,
    vae: AutoencoderKL,
    checker: StableDiffusionSafetyChecker,
    vocabulary: CLIPTokenizer,
    denoiser: stages.Denoiser,
) -> None:
    """Write the seven components as a diffusers folder in float16, with model card and manifest."""
    models = {
        "vae": vae,
        "unet": denoiser.unet,
        "text_encoder": denoiser.text_encoder,
        "safety_checker": checker,
    }
    for name, model in models.items():
        model.half().to(memory_format=torch.contiguous_format).save_pretrained(out / name)
    networks.feature_extractor().save_pretrained(out / "feature_extractor")
    networks.scheduler().save_pretrained(out / "scheduler")
    vocabulary.save_pretrained(out / "tokenizer")
    networks.write_model_index(out)
    copyfile(Path(__file__).with_name("model-card.md"), out / "README.md")
    manifest.write(out, name="sd-emoji", revision=None, dtype="float16", safety_checker=True)


def _latents(vae: AutoencoderKL, images: torch.Tensor, cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the latents of `images`, computed once."""
    if not cache.exists():
        mean, deviation = stages.encode(vae, images)
        save_file({"mean": mean.contiguous(), "deviation": deviation.contiguous()}, cache)
    stored = load_file(cache)
    return stored["mean"], stored["deviation"]


if __name__ == "__main__":
    typer.run(train)
