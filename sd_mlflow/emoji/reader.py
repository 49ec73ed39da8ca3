"""The reader: a classifier that says what is in a picture, trained on scenes only, never on the model's pictures.

`sd_mlflow.emoji.evaluate` measures sd-emoji with it, so nothing that trains sd-emoji may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from sd_mlflow import manifest
from sd_mlflow.emoji.captions import RELATIONS, Description
from sd_mlflow.emoji.places import COLOURS, PLACES
from sd_mlflow.emoji.subjects import STYLES, SUBJECTS

FOLDER = Path(__file__).with_name("reader-weights")
WEIGHTS, ACCURACY = "model.safetensors", "accuracy.json"
#: What the heads tell apart.
RELATION_NAMES, SETTINGS = tuple(RELATIONS), (None, *PLACES, *COLOURS)


class _Block(nn.Module):
    """A convolution beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.silu(self.norm(self.conv(x)))


class Reader(nn.Module):
    """A residual network of 0.6 M parameters; a head each for subjects, relation, style and setting.

    The subjects' head looks at every place of an 8x8 grid and keeps the clearest, so that it finds
    a subject wherever it stands and whatever is beside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, 64, 3, padding=1),
            *(_Block(64) for _ in range(2)),
            nn.Conv2d(64, 104, 2, stride=2),
            *(_Block(104) for _ in range(3)),
            nn.Conv2d(104, 104, 2, stride=2),
            _Block(104),
        )
        self.subjects = nn.Conv2d(104, len(SUBJECTS), 1)
        self.rest = nn.Sequential(nn.Linear(104 * 5, 96), nn.SiLU())
        self.relation = nn.Linear(96, len(RELATION_NAMES))
        self.style = nn.Linear(96, len(STYLES))
        self.setting = nn.Linear(96, len(SETTINGS))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of `images`, (n, 3, SIZE, SIZE) in -1 to 1: of each subject, of relation, style, setting."""
        features = self.body(images)
        found = self.subjects(features).float().flatten(2).logsumexp(dim=2)
        pooled = torch.cat([features.amax(dim=(2, 3)), F.adaptive_avg_pool2d(features, 2).flatten(1)], dim=1)
        rest = self.rest(pooled)
        return found, self.relation(rest).float(), self.style(rest).float(), self.setting(rest).float()

    @torch.no_grad()
    def agrees(self, images: torch.Tensor, shown: Sequence[Description]) -> list[dict[str, bool]]:
        """Whether what is read off each of `images`, uint8 (n, 3, SIZE, SIZE), is what it should show."""
        found, relation, style, setting = self(images.float().div(127.5).sub(1.0))
        results = []
        for number, wanted in enumerate(shown):
            subjects = {SUBJECTS[i] for i in found[number].topk(len(set(wanted.subjects))).indices}
            results.append(
                {
                    "subjects": subjects == set(wanted.subjects),
                    "relation": RELATION_NAMES[int(relation[number].argmax())] == wanted.relation,
                    "style": STYLES[int(style[number].argmax())] == wanted.style,
                    "place": SETTINGS[int(setting[number].argmax())] == wanted.setting,
                }
            )
        return results


def load() -> Reader:
    """The shipped reader. Raises `IntegrityError` if it is not the one whose hash is in its manifest."""
    manifest.verify(FOLDER)
    reader = Reader()
    reader.load_state_dict(load_file(FOLDER / WEIGHTS))
    return reader.float().eval()
