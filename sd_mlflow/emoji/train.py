"""Make sd-emoji from nothing: `python -m sd_mlflow.emoji.train --help`."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from rich.progress import track
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from sd_mlflow import manifest
from sd_mlflow.emoji import autoencoding, checking, denoising, networks
from sd_mlflow.emoji.art import load_art
from sd_mlflow.emoji.fit import training_device
from sd_mlflow.emoji.previews import Previews
from sd_mlflow.emoji.scenes import SceneComposer, even_shares
from sd_mlflow.errors import PackageError

#: The checker's scenes are others than the denoiser's, and half of them break the policy.
_CHECKER_SEED, _CHECKER_POLICY_SHARE = 1, 0.5
#: Guidance at v1-4's default of 7.5 then does what guidance at 3 would: closest to the prompts by eye.
_GUIDANCE_STRENGTH = 0.4


def train(
    work: Annotated[Path, typer.Option(help="Checkpoints, logs and downloads; a second run resumes there.")],
    out: Annotated[Path, typer.Option(help="Where the diffusers folder is written; must not exist.")],
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 40_000,
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of 16 crops.")] = 6_000,
    decoder_steps: Annotated[int, typer.Option(help="Steps of 4 pictures, for the decoder alone.")] = 5_000,
    checker_steps: Annotated[int, typer.Option(help="Steps of 64 pictures.")] = 3_000,
    denoiser_steps: Annotated[int, typer.Option(help="Steps of 32 latents.")] = 34_000,
    calibration_steps: Annotated[int, typer.Option(help="Steps of 32 latents, for guidance.")] = 1_800,
    seed: Annotated[int, typer.Option(help="Decides the scenes, to the byte.")] = 0,
) -> None:
    """Train sd-emoji: autoencoder, safety checker, denoiser; on a GPU if there is one."""
    if out.exists():
        raise PackageError(f"{out} exists already: give another folder, or remove it")
    work.mkdir(parents=True, exist_ok=True)
    device = training_device()
    composer = SceneComposer(load_art(work / "npm"))
    data = [composer.scene(seed, index) for index in track(range(scenes), description="scenes")]
    captions = [scene.caption for scene in data]
    vocabulary = networks.tokenizer(captions)
    images = autoencoding.pixels(data)
    vae = autoencoding.train_autoencoder(images, steps=autoencoder_steps, batch=16, folder=work, device=device)
    latents = networks.whiten(vae, *_latents(vae, images, work / "latents.safetensors"))
    autoencoding.train_decoder(vae, images, latents, steps=decoder_steps, batch=4, folder=work)

    shares = even_shares([scene.description for scene in data])
    noisy = denoising.NoisyLatents(vocabulary, captions, latents, shares, device)
    denoiser = denoising.Denoiser(vocabulary).to(device)
    previews = Previews(vae, vocabulary, work / "previews")
    denoising.train_denoiser(denoiser, noisy, steps=denoiser_steps, batch=32, folder=work, preview=previews)
    denoising.calibrate_guidance(
        denoiser, noisy, strength=_GUIDANCE_STRENGTH, steps=calibration_steps, batch=32, folder=work
    )

    checked = [
        composer.scene(seed + _CHECKER_SEED, index, _CHECKER_POLICY_SHARE)
        for index in track(range(scenes // 4), description="scenes for the checker")
    ]
    pictures = autoencoding.pixels(checked)
    pictures = torch.cat([pictures, autoencoding.reconstructed(vae, pictures)])
    checker = checking.train_checker(
        vocabulary, pictures, checked * 2, steps=checker_steps, batch=64, folder=work, device=device
    )
    export(out, vae, checker, vocabulary, denoiser)


def export(
    out: Path,
    vae: AutoencoderKL,
    checker: checking.Checker,
    vocabulary: CLIPTokenizer,
    denoiser: denoising.Denoiser,
) -> None:
    """Write the seven components and the text tower as a diffusers folder in float16, with card and manifest."""
    models = {
        "vae": vae,
        "unet": denoiser.unet,
        "text_encoder": denoiser.text_encoder,
        "safety_checker": checker.policy_checker(),
        checking.TEXT_TOWER: checker.text_tower,
    }
    for name, model in models.items():
        model.half().cpu().to(memory_format=torch.contiguous_format).save_pretrained(out / name)
    networks.feature_extractor().save_pretrained(out / "feature_extractor")
    networks.scheduler().save_pretrained(out / "scheduler")
    vocabulary.save_pretrained(out / "tokenizer")
    networks.write_model_index(out)
    copyfile(Path(__file__).with_name("model-card.md"), out / "README.md")
    manifest.write(out, name="sd-emoji", revision=None, dtype="float16", safety_checker=True)


def _latents(vae: AutoencoderKL, images: torch.Tensor, cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the latents of `images`, computed once."""
    if not cache.exists():
        mean, deviation = autoencoding.encode(vae, images)
        save_file({"mean": mean.contiguous(), "deviation": deviation.contiguous()}, cache)
    stored = load_file(cache)
    return stored["mean"], stored["deviation"]


if __name__ == "__main__":
    typer.run(train)
