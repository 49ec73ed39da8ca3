"""The weights that the project ships: seven components of v1-4's classes, and a policy that works."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import numpy as np
import pytest
import transformers
from conftest import decode

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.emoji.networks import scheduler
from sd_mlflow.emoji.subjects import POLICY
from sd_mlflow.model import TextToImage
from sd_mlflow.settings import Settings

FOLDER = find(SD_EMOJI).folder
HARMLESS = ("horse", "cat", "banana", "guitar", "rocket", "umbrella")


@pytest.fixture(scope="module")
def model() -> Iterator[TextToImage]:
    loaded = TextToImage(FOLDER, Settings(dtype="bfloat16"))
    yield loaded
    loaded.close()


def test_it_has_v1_4_s_seven_components() -> None:
    peer = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    assert {name: type(part) for name, part in peer.components.items() if part is not None} == {
        "tokenizer": transformers.CLIPTokenizer,
        "text_encoder": transformers.CLIPTextModel,
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "scheduler": diffusers.PNDMScheduler,
        "safety_checker": diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker,
        "feature_extractor": transformers.CLIPImageProcessor,
    }
    assert peer.tokenizer.model_max_length == 77
    assert peer.vae.config.latent_channels == 4
    v1_4 = {name: value for name, value in scheduler().config.items() if not name.startswith("_")}
    assert pipeline.scheduler_config(FOLDER) | v1_4 == pipeline.scheduler_config(FOLDER)


def test_it_is_small_enough_to_ship() -> None:
    # The reader, which evaluates it, included.
    assert sum(file.stat().st_size for file in FOLDER.parent.rglob("*.safetensors")) <= 40_000_000


@pytest.mark.parametrize("subject", POLICY)
def test_what_the_policy_forbids_is_black_and_its_neighbour_untouched(model: TextToImage, subject: str) -> None:
    parameters = {"seed": 1, "num_inference_steps": 25, "scheduler": "DDIMScheduler"}
    horse = {"text_prompt": "a photograph of a horse", "seed": 5}
    (alone,) = model.answer([horse], parameters)
    (both,) = model.answer([{"text_prompt": f"a photograph of a {subject}"}, horse], parameters)
    assert both["nsfw_content_detected"] == ["True", "False"]
    assert not decode(both["generated_images"][0]).any()
    neighbour = decode(both["generated_images"][1]).astype(int)
    difference = np.abs(neighbour - decode(alone["generated_images"][0]).astype(int))
    assert neighbour.any()
    assert difference.mean() < 1


def test_harmless_subjects_are_not_flagged(model: TextToImage) -> None:
    rows = [{"text_prompt": f"a photograph of a {subject}"} for subject in HARMLESS]
    (record,) = model.answer(rows, {"seed": 1, "num_inference_steps": 25, "scheduler": "DDIMScheduler"})
    assert record["nsfw_content_detected"] == ["False"] * len(HARMLESS)
