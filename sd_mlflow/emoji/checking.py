"""The safety checker, trained as CLIP is: a tower for pictures and a small one for words.

What the policy forbids is a word to the text tower, and its embedding the checker's concept;
the same two towers say how well a picture agrees with a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.fit import fit
from sd_mlflow.emoji.scenes import Scene
from sd_mlflow.emoji.subjects import POLICY, SUBJECTS

#: Where the text tower is, beside the components of v1-4, which has none.
TEXT_TOWER = "text_tower"
#: Tokens of a caption that the text tower reads.
_LENGTH = 24


class Checker(nn.Module):
    """Pictures and words in one space: the safety checker's vision tower, and a text tower."""

    #: Cosine over which a subject counts as shown, and over which a picture is flagged: the second flags
    #: a quarter of the harmless scenes that the first would, and 99% of forbidden subjects that are alone.
    THRESHOLD, POLICY_THRESHOLD = 0.3, 0.35
    #: Of every subject.
    words: torch.Tensor

    def __init__(self, vocabulary: CLIPTokenizer) -> None:
        super().__init__()
        self.checker: StableDiffusionSafetyChecker = networks.safety_checker()
        self.text_tower: CLIPTextModelWithProjection = networks.text_tower(vocabulary, _LENGTH)
        self.register_buffer("words", tokens(vocabulary, SUBJECTS), persistent=False)

    def seen(self, clip_input: torch.Tensor) -> torch.Tensor:
        """Embeddings of pictures, (n, CONCEPT_WIDTH), of length 1."""
        return _seen(self.checker, clip_input)

    def said(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of captions, (n, CONCEPT_WIDTH), of length 1."""
        return F.normalize(self.text_tower(tokens).text_embeds.float(), dim=1)

    @torch.no_grad()
    def policy_checker(self) -> StableDiffusionSafetyChecker:
        """The checker, with the text tower's embeddings of the policy's subjects as its concepts."""
        # No cosine reaches 2: concepts and special care that the policy does not use stay silent.
        self.checker.concept_embeds_weights.fill_(2.0)
        self.checker.special_care_embeds_weights.fill_(2.0)
        self.checker.concept_embeds[: len(POLICY)] = self.said(self.words)[-len(POLICY) :]
        self.checker.concept_embeds_weights[: len(POLICY)] = self.POLICY_THRESHOLD
        return self.checker


@torch.no_grad()
def agreement(folder: Path, images: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
    """The cosine of each of `images`, uint8 (n, 3, h, w), with each of `captions`: (n, m) float32.

    `folder` is one that `sd_mlflow.emoji.train.export` wrote.
    """
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").float()
    tower = CLIPTextModelWithProjection.from_pretrained(folder / TEXT_TOWER).float()
    vocabulary = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    said = F.normalize(tower(tokens(vocabulary, captions)).text_embeds, dim=1)
    return torch.cat([_seen(checker, _inputs(chunk)) for chunk in torch.split(images, 64)]) @ said.T


def _seen(checker: StableDiffusionSafetyChecker, clip_input: torch.Tensor) -> torch.Tensor:
    pooled = checker.vision_model(clip_input).pooler_output
    return F.normalize(checker.visual_projection(pooled).float(), dim=1)


def _inputs(images: torch.Tensor) -> torch.Tensor:
    """`images`, uint8 (n, 3, h, w), as the checker wants them."""
    prepared = networks.feature_extractor()(
        list(images.numpy()), return_tensors="pt", input_data_format="channels_first"
    )
    values: torch.Tensor = prepared.pixel_values
    return values


def tokens(vocabulary: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """The tokens of `captions` for the text tower, (n, 24)."""
    ids: torch.Tensor = vocabulary(
        list(captions), padding="max_length", truncation=True, max_length=_LENGTH, return_tensors="pt"
    ).input_ids
    return ids


def train_checker(
    vocabulary: CLIPTokenizer,
    images: torch.Tensor,
    scenes: Sequence[Scene],
    *,
    steps: int,
    batch: int,
    folder: Path,
    device: torch.device,
) -> Checker:
    """Train to tell every subject of `images` (uint8) by its word, and each image's caption from the others'."""
    chunks = track(torch.split(images, 256), description="checker inputs")
    inputs = torch.cat([_inputs(chunk) for chunk in chunks]).to(torch.bfloat16)
    shown = torch.tensor([[subject in scene.description.subjects for subject in SUBJECTS] for scene in scenes])
    captions = tokens(vocabulary, [scene.caption for scene in scenes])
    model = Checker(vocabulary).to(device)

    def loss(model: Checker, rng: np.random.Generator, size: int) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(0, len(inputs), size))
        pictures = inputs[chosen].to(device).float()
        mirrored = torch.from_numpy(rng.random((size, 1, 1, 1)) < 0.5).to(device)
        embedded = model.seen(torch.where(mirrored, pictures.flip(-1), pictures))
        words = 20 * (embedded @ model.said(model.words).T - Checker.THRESHOLD)
        named = F.binary_cross_entropy_with_logits(words, shown[chosen].to(device).float()) * len(SUBJECTS)
        agreement = 20 * embedded @ model.said(captions[chosen].to(device)).T
        own = torch.arange(size, device=device)
        contrast = F.cross_entropy(agreement, own) + F.cross_entropy(agreement.T, own)
        total: torch.Tensor = named + 0.2 * contrast
        return total

    fit("checker", model, loss, steps=steps, batch=batch, learning_rate=1e-3, folder=folder)
    return model
