"""A folder laid out as CompVis published v1-4 packages and loads, with every tensor where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import compvis, read, with_attention

from sd_mlflow import checkpoint, packaging, pipeline
from sd_mlflow.engine import Engine
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.safety import Pixels
from sd_mlflow.settings import Settings

PROMPTS = ["a photograph of an astronaut riding a horse", "", "Ünïcode, 漢字 & 😀: don't!", "horse " * 100]


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_attention(tmp_path_factory.mktemp("modern") / "source")


@pytest.fixture(scope="module")
def direct(modern: Path) -> Pipeline:
    """The checkpoint packaged as today's diffusers writes it."""
    return packaged(modern)


@pytest.fixture(scope="module")
def published(modern: Path) -> Pipeline:
    """The same checkpoint, packaged from CompVis's layout."""
    return packaged(compvis(modern, modern.with_name("stable-diffusion-v1-4")))


def packaged(source: Path) -> Pipeline:
    out = source.with_name(f"{source.name}-package")
    packaging.package(checkpoint.find(str(source)), out, dtype="float32")
    return pipeline.load(out / packaging.CHECKPOINT_PATH, "cpu")


def picture(loaded: Pipeline) -> Pixels:
    engine = Engine(lambda _: loaded, Settings())
    (image,) = engine.generate([ImageRequest(PROMPTS[0], seed=7, num_inference_steps=2)])
    engine.close()
    return image.pixels


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae", "safety_checker"])
def test_every_tensor_is_where_it_belongs(published: Pipeline, modern: Path, component: str) -> None:
    model = published.prompt_encoder.text_encoder if component == "text_encoder" else getattr(published, component)
    expected, found = read(modern, component), model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name].float())] == []


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_become_the_same_tokens(published: Pipeline, direct: Pipeline, prompt: str) -> None:
    assert published.prompt_encoder.tokens(prompt) == direct.prompt_encoder.tokens(prompt)


def test_pictures_are_prepared_for_the_safety_checker_alike(published: Pipeline, direct: Pipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    assert published.feature_extractor is not None
    assert direct.feature_extractor is not None
    ours, theirs = (
        extractor(pixels, return_tensors="pt").pixel_values
        for extractor in (published.feature_extractor, direct.feature_extractor)
    )
    assert torch.equal(ours, theirs)


def test_the_picture_of_a_seed_is_the_same(published: Pipeline, direct: Pipeline) -> None:
    assert np.ptp(picture(direct)) > 0
    assert np.array_equal(picture(published), picture(direct))
