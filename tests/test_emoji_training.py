"""sd-emoji is made again by one command: the same scenes to the byte, and training that resumes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, psnr
from torch import nn

from sd_mlflow import pipeline
from sd_mlflow.emoji import fit as fitting
from sd_mlflow.emoji import networks
from sd_mlflow.emoji.art import Art, fetch, load_art
from sd_mlflow.emoji.scenes import SceneComposer
from sd_mlflow.emoji.subjects import POLICY, SIZE, STYLES, SUBJECTS

#: Downloads are kept between runs of the tests, and checked against their hashes each time.
CACHE = REPOSITORY / "build" / "npm"


@pytest.fixture(scope="module")
def art() -> Art:
    return load_art(CACHE)


def test_every_subject_is_drawn_in_every_style(art: Art) -> None:
    assert art.keys() == {(subject, style) for subject in SUBJECTS for style in STYLES}
    for drawing in art.values():
        assert np.asarray(drawing)[..., 3].mean() > 10  # not an empty picture


def test_scenes_are_the_same_to_the_byte(art: Art) -> None:
    one, other = SceneComposer(art), SceneComposer(art)
    scenes = [one.scene(3, index) for index in range(200)]
    again = [other.scene(3, index) for index in reversed(range(200))][::-1]
    assert [scene.image.tobytes() for scene in scenes] == [scene.image.tobytes() for scene in again]
    assert [scene.caption for scene in scenes] == [scene.caption for scene in again]
    assert scenes[0].image.size == (SIZE, SIZE)
    assert len({scene.image.tobytes() for scene in scenes}) == 200


def test_captions_name_what_is_shown(art: Art) -> None:
    composer = SceneComposer(art)
    for index in range(300):
        scene = composer.scene(0, index, policy_share=0.5)
        assert all(subject in scene.caption for subject in scene.subjects)
        assert scene.flagged == any(f" {subject}" in f" {scene.caption}" for subject in POLICY)


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected 3e918d88"):
        fetch("@iconify-json/noto", tmp_path)


def test_every_word_of_a_caption_is_one_token(art: Art) -> None:
    composer = SceneComposer(art)
    captions = [composer.scene(0, index).caption for index in range(500)]
    tokenizer = networks.tokenizer(captions)
    for caption in captions:
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in caption.split()]
    assert tokenizer.model_max_length == 77


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


def test_training_that_is_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_SAVE_EVERY", 2)

    def train(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model, done = nn.Linear(3, 1), [0]

        def loss(rng: np.random.Generator) -> torch.Tensor:
            if done[0] == stop_at:
                raise KeyboardInterrupt
            done[0] += 1
            inputs = torch.from_numpy(rng.random((4, 3))).float()
            return (model(inputs).float() + torch.randn(4, 1)).square().mean()

        fitting.fit("line", model, loss, steps=9, learning_rate=0.1, folder=folder)
        return model.state_dict()

    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole.mkdir()
    pieces.mkdir()
    expected = train(whole, None)
    with pytest.raises(KeyboardInterrupt):
        train(pieces, 5)
    resumed = train(pieces, None)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_the_documented_command_makes_a_model_that_loads(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "sd-emoji"
    work.mkdir()
    (work / "npm").symlink_to(CACHE)
    steps = [f"--{stage}-steps=2" for stage in ("autoencoder", "checker", "denoiser", "calibration")]
    command = [sys.executable, "-m", "sd_mlflow.emoji.train", f"--work={work}", f"--out={out}", "--scenes=64"]
    subprocess.run([*command, *steps], check=True, capture_output=True)
    loaded = pipeline.load(out, "cpu")
    assert loaded.image_size == SIZE
    assert loaded.safety_checker is not None
    weights = hashlib.sha256((out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert loaded.manifest.files["unet/diffusion_pytorch_model.safetensors"].sha256 == weights
