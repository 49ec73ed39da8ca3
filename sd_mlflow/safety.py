"""A verdict on every image, by the checkpoint's own safety checker; no verdict, no image.

The rule is that of diffusers' `StableDiffusionSafetyChecker`: an image is flagged if its
embedding is closer to a concept than that concept's threshold allows, thresholds being 0.01
lower where a concept of special care is near. Compared in float32, and, unlike there, an
embedding that is not a number is no "safe" image but a checker that failed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sd_mlflow.errors import SafetyUnavailable

_log = logging.getLogger(__name__)
_SPECIAL_CARE_ADJUSTMENT = 0.01

Pixels = NDArray[np.uint8]


def to_pixels(colours: torch.Tensor) -> Pixels:
    """`colours`, (height, width, 3) in -1 to 1 and beyond, as uint8 of the same shape."""
    pixels: Pixels = ((colours / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return pixels


class SafetyVerdict(Enum):
    """What the checker says of one image; the values are the flags of the response."""

    SAFE = "False"
    FLAGGED = "True"
    NOT_CHECKED = "NotChecked"


@dataclass(frozen=True)
class SafetyChecker:
    """The checkpoint's checker, or none if it was packaged without one, in so many words."""

    model: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessorPil | None

    def apply(self, pixels: Pixels) -> tuple[Pixels, SafetyVerdict]:
        """`pixels`, (height, width, 3) uint8, and the verdict; black if flagged.

        Raises `SafetyUnavailable` if the checker cannot tell.
        """
        if self.model is None:
            return pixels, SafetyVerdict.NOT_CHECKED
        try:
            flagged = self._flagged(pixels)
        except Exception as error:
            _log.exception("the safety checker failed")
            raise SafetyUnavailable("the image could not be checked for safety, so it is withheld") from error
        if flagged:
            return np.zeros_like(pixels), SafetyVerdict.FLAGGED
        return pixels, SafetyVerdict.SAFE

    @torch.inference_mode()
    def _flagged(self, pixels: Pixels) -> bool:
        assert self.model is not None
        assert self.feature_extractor is not None
        weight = self.model.visual_projection.weight
        features = self.feature_extractor(pixels, return_tensors="pt").pixel_values
        pooled = self.model.vision_model(features.to(weight.device, weight.dtype)).pooler_output
        embedding = normalize(self.model.visual_projection(pooled).float())
        if not embedding.isfinite().all():
            raise ArithmeticError("the embedding of the image is not finite")
        special = _distances(embedding, self.model.special_care_embeds, self.model.special_care_embeds_weights)
        concepts = _distances(embedding, self.model.concept_embeds, self.model.concept_embeds_weights)
        adjustment = _SPECIAL_CARE_ADJUSTMENT if bool((special > 0).any()) else 0.0
        return bool((torch.round(concepts + adjustment, decimals=3) > 0).any())


def _distances(embedding: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """How far the cosine to each concept is over its threshold, (1, concepts) float32."""
    return torch.round(embedding @ normalize(concepts.float()).T - thresholds.float(), decimals=3)
