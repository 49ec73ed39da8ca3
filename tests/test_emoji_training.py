"""sd-emoji is made again by one command, and training that is stopped goes on to the same weights."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from torch import nn

from sd_mlflow import pipeline
from sd_mlflow.emoji import autoencoding, checking, networks
from sd_mlflow.emoji import fit as fitting
from sd_mlflow.emoji.subjects import SIZE
from sd_mlflow.images import psnr

#: Downloads are kept between runs of the tests, and checked against their hashes each time.
CACHE = REPOSITORY / "build" / "npm"


@torch.no_grad()
def test_whitening_changes_the_latents_and_not_the_pictures() -> None:
    torch.manual_seed(0)
    vae = networks.autoencoder().eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    before = vae.encode(images).latent_dist
    picture = vae.decode(before.mean).sample
    mean, deviation = networks.whiten(vae, before.mean, before.std)
    after = vae.encode(images).latent_dist
    torch.testing.assert_close(after.mean, mean, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(after.std, deviation, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    assert psnr(vae.decode(after.mean).sample.numpy(), picture.numpy()) > 80


def test_the_decoder_learns_alone_and_what_was_encoded_stays_true(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = networks.autoencoder().eval()
    pictures = torch.randint(0, 256, (1, 3, 1, 1), dtype=torch.uint8).expand(4, 3, 64, 64).contiguous()
    latents = autoencoding.encode(vae, pictures)
    before = autoencoding.sharpness(vae, pictures)
    autoencoding.train_decoder(vae, pictures, latents, steps=20, batch=4, folder=tmp_path)
    after = autoencoding.encode(vae, pictures)
    assert torch.equal(after[0], latents[0])
    assert torch.equal(after[1], latents[1])
    assert autoencoding.sharpness(vae, pictures) > before + 3


def test_training_that_is_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_SAVE_EVERY", 2)

    def train(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model, done = nn.Linear(3, 1), [0]

        def loss(model: nn.Linear, rng: np.random.Generator, size: int) -> torch.Tensor:
            if done[0] == stop_at:
                raise KeyboardInterrupt
            done[0] += 1
            inputs = torch.from_numpy(rng.random((size, 3))).float()
            return (model(inputs).float() + fitting.normal(rng, inputs[:, :1])).square().mean()

        fitting.fit("line", model, loss, steps=9, batch=8, learning_rate=0.1, folder=folder)
        return model.state_dict()

    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole.mkdir()
    pieces.mkdir()
    expected = train(whole, None)
    with pytest.raises(KeyboardInterrupt):
        train(pieces, 5)
    resumed = train(pieces, None)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_training_shows_its_loss_and_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_SAVE_EVERY", 2)
    monkeypatch.setattr(fitting, "_PREVIEW_EVERY", 4)
    model, shown = nn.Linear(1, 1), list[int]()

    def loss(model: nn.Linear, rng: np.random.Generator, size: int) -> torch.Tensor:
        return model(torch.ones(size, 1)).square().mean()

    fitting.fit(
        "line",
        model,
        loss,
        steps=9,
        batch=1,
        learning_rate=0.1,
        folder=tmp_path,
        preview=lambda _, step: shown.append(step),
    )
    assert shown == [4, 8, 9]
    curve = np.asarray(Image.open(tmp_path / "line.png"))
    blue = (curve[..., 2] > 150) & (curve[..., 0] < 100)
    rows = [np.nonzero(blue[:, column])[0] for column in (170, 590)]
    assert rows[0].mean() < rows[1].mean()  # the loss falls


def test_the_documented_command_makes_a_model_that_loads(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "sd-emoji"
    work.mkdir()
    (work / "npm").symlink_to(CACHE)
    stages = ("autoencoder", "decoder", "checker", "denoiser", "calibration")
    steps = [f"--{stage}-steps=2" for stage in stages]
    command = [sys.executable, "-m", "sd_mlflow.emoji.train", f"--work={work}", f"--out={out}", "--scenes=64"]
    subprocess.run([*command, *steps], check=True, capture_output=True)
    assert Image.open(work / "previews" / "000002.png").size == (6 * SIZE, 2 * SIZE)
    loaded = pipeline.load(out, "cpu")
    assert loaded.image_size == SIZE
    assert loaded.safety_checker is not None
    agreement = checking.agreement(
        out, torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), ["a cat", "a dog", "a cat"]
    )
    assert torch.equal(agreement[:, 0], agreement[:, 2])
    assert not torch.equal(agreement[:, 0], agreement[:, 1])
    assert agreement.abs().max() <= 1.001
    weights = hashlib.sha256((out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert loaded.manifest.files["unet/diffusion_pytorch_model.safetensors"].sha256 == weights
