"""The verdict, against diffusers' own checker, and what happens when there can be none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.errors import SafetyUnavailable
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.safety import SafetyChecker, SafetyVerdict


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return pipeline.load(find(SD_EMOJI).folder, "cpu", "float32")


@pytest.fixture
def checker(loaded: Pipeline) -> SafetyChecker:
    return SafetyChecker(loaded.safety_checker, loaded.feature_extractor)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.02, 2.0])
def test_the_verdict_is_that_of_diffusers(
    checker: SafetyChecker, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    assert checker.model is not None
    assert checker.feature_extractor is not None
    weights = torch.full_like(checker.model.concept_embeds_weights, threshold)
    monkeypatch.setattr(checker.model.concept_embeds_weights, "data", weights)
    for image in pictures(6):
        features = checker.feature_extractor(image, return_tensors="pt").pixel_values
        _, flagged = checker.model(clip_input=features, images=[image.copy()])
        pixels, verdict = checker.apply(image)
        assert verdict == (SafetyVerdict.FLAGGED if flagged[0] else SafetyVerdict.SAFE)
        assert np.array_equal(pixels, np.zeros_like(image) if flagged[0] else image)


def test_special_care_lowers_the_thresholds(checker: SafetyChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checker.model is not None
    (image,) = pictures(1)
    features = checker.feature_extractor(image, return_tensors="pt").pixel_values  # type: ignore[misc]
    with torch.no_grad():
        embedding = checker.model.visual_projection(checker.model.vision_model(features).pooler_output)
    concepts = torch.nn.functional.normalize(checker.model.concept_embeds)
    cosines = torch.nn.functional.normalize(embedding) @ concepts.T
    just_missed = torch.full((17,), cosines.max().item() + 0.005)
    monkeypatch.setattr(checker.model.concept_embeds_weights, "data", just_missed)
    monkeypatch.setattr(checker.model.special_care_embeds_weights, "data", torch.full((3,), 2.0))
    assert checker.apply(image)[1] is SafetyVerdict.SAFE
    monkeypatch.setattr(checker.model.special_care_embeds_weights, "data", torch.full((3,), -1.0))
    assert checker.apply(image)[1] is SafetyVerdict.FLAGGED


def test_an_embedding_that_is_not_a_number_is_no_safe_image(
    checker: SafetyChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checker.model is not None
    broken = torch.full_like(checker.model.visual_projection.weight, float("nan"))
    monkeypatch.setattr(checker.model.visual_projection.weight, "data", broken)
    with pytest.raises(SafetyUnavailable):
        checker.apply(pictures(1)[0])


def test_a_checker_that_fails_withholds_the_image(loaded: Pipeline) -> None:
    class Broken(torch.nn.Module):
        """Stands in for a checker that cannot run: no real one fails on demand."""

    with pytest.raises(SafetyUnavailable, match="withheld"):
        SafetyChecker(Broken(), loaded.feature_extractor).apply(pictures(1)[0])


def test_without_a_checker_the_flag_says_so() -> None:
    (image,) = pictures(1)
    pixels, verdict = SafetyChecker(None, None).apply(image)
    assert verdict.value == "NotChecked"
    assert np.array_equal(pixels, image)
