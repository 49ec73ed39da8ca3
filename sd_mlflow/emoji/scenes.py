"""Scenes composed of emoji, with captions: the data that sd-emoji is trained on.

Scene number `i` of a seed is the same to the byte on every machine that has the same
Pillow: it is drawn by its own generator, `numpy.random.default_rng([seed, i])`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sd_mlflow.emoji.art import Art
from sd_mlflow.emoji.captions import Choice, Description
from sd_mlflow.emoji.pairs import SAMPLE_PAIRS, seen_pairs
from sd_mlflow.emoji.places import COLOURS, PLACES, backdrop, foreground
from sd_mlflow.emoji.subjects import CONTAINERS, HARMLESS, HELD, POLICY, RIDERS, SIZE, STYLES

#: How often scenes show what. Single subjects and riding need the most practice.
_RELATIONS = {
    "alone": 0.38,
    "riding": 0.34,
    "next to": 0.07,
    "two": 0.03,
    "three": 0.03,
    "on top of": 0.04,
    "holding": 0.05,
    "inside": 0.03,
    "behind": 0.03,
}
_STYLES = (0.5, 0.25, 0.25)

#: Relation -> (smallest edge, largest edge, x of the centre, y of the centre), as shares of the picture, of
#: each subject, the one at the back first.
_LAYOUTS = {
    "alone": [(0.70, 0.90, 0.50, 0.52)],
    "two": [(0.44, 0.50, 0.26, 0.55), (0.44, 0.50, 0.74, 0.55)],
    "three": [(0.42, 0.46, 0.50, 0.25), (0.42, 0.46, 0.26, 0.73), (0.42, 0.46, 0.74, 0.73)],
    "riding": [(0.68, 0.76, 0.50, 0.63), (0.40, 0.46, 0.50, 0.27)],
    "next to": [(0.44, 0.50, 0.26, 0.55), (0.44, 0.50, 0.74, 0.55)],
    "on top of": [(0.46, 0.50, 0.50, 0.74), (0.46, 0.50, 0.50, 0.27)],
    "holding": [(0.70, 0.76, 0.42, 0.47), (0.36, 0.40, 0.76, 0.72)],
    "inside": [(0.68, 0.72, 0.50, 0.63), (0.46, 0.50, 0.50, 0.00)],
    "behind": [(0.56, 0.60, 0.34, 0.36), (0.52, 0.56, 0.66, 0.66)],
}
#: Relations whose second subject in the caption is at the back.
_SECOND_AT_BACK = ("riding", "on top of", "inside")


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, `SIZE` square), what it shows, and a caption that says so."""

    image: Image.Image
    description: Description
    caption: str


class SceneComposer:
    """Draws scenes from `art` (see `sd_mlflow.emoji.art.load_art`)."""

    def __init__(self, art: Art) -> None:
        self._art = art
        self._sized: dict[tuple[str, str, int, bool], Image.Image] = {}

    def scene(self, seed: int, index: int, policy_share: float = 0.05) -> Scene:
        """Scene `index` of `seed`; `policy_share` of all hold a forbidden subject."""
        rng = np.random.default_rng([seed, index])
        description = describe(rng, policy_share)
        return Scene(self.draw(rng, description), description, description.said(rng))

    def draw(self, rng: np.random.Generator, shown: Description) -> Image.Image:
        """A picture of what is described."""
        image = backdrop(rng, shown.setting)
        layout = _LAYOUTS[shown.relation]
        subjects = shown.subjects * len(layout) if len(shown.subjects) == 1 else shown.subjects
        if shown.relation in _SECOND_AT_BACK:
            subjects = subjects[::-1]
        if shown.relation == "inside":
            self._inside(rng, image, shown.style, subjects)
        else:
            for subject, (least, most, x, y) in zip(subjects, layout, strict=True):
                self._paste(image, self._icon(rng, subject, shown.style, least, most), *_jittered(rng, x, y))
        foreground(rng, image, shown.setting)
        return image

    def _inside(self, rng: np.random.Generator, image: Image.Image, style: str, subjects: Sequence[str]) -> None:
        """The container, the subject that stands in it, and the container's front again, from its rim down."""
        (least, most, x, y), (smallest, largest, *_) = _LAYOUTS["inside"]
        container = self._icon(rng, subjects[0], style, least, most)
        x, y = _jittered(rng, x, y)
        rim = round(container.height * CONTAINERS[subjects[0]])
        front = container.copy()
        front.paste((0, 0, 0, 0), (0, 0, front.width, rim))
        self._paste(image, container, x, y)
        subject = self._icon(rng, subjects[1], style, smallest, largest)
        self._paste(image, subject, x, y + (rim - container.height / 2) / SIZE - 0.06)
        self._paste(image, front, x, y)

    def _icon(self, rng: np.random.Generator, subject: str, style: str, least: float, most: float) -> Image.Image:
        """`subject` with an edge between shares `least` and `most` of the picture, mirrored or not."""
        edge = 2 * round(rng.uniform(least, most) * SIZE / 2)
        key = (subject, style, edge, bool(rng.random() < 0.5))
        if key not in self._sized:
            icon = self._art[subject, style].resize((edge, edge), Image.Resampling.LANCZOS)
            self._sized[key] = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if key[3] else icon
        return self._sized[key]

    @staticmethod
    def _paste(image: Image.Image, icon: Image.Image, x: float, y: float) -> None:
        corner = (round(x * SIZE) - icon.width // 2, round(y * SIZE) - icon.height // 2)
        image.paste(icon, corner, icon)


def describe(rng: np.random.Generator, policy_share: float) -> Description:
    """What a scene shows, at random; never a rider on a mount whose pair is held out."""
    style = _pick(rng, STYLES, _STYLES)
    kind = rng.random()
    setting = _pick(rng, PLACES) if kind < 0.45 else _pick(rng, tuple(COLOURS)) if kind < 0.6 else None
    if rng.random() < policy_share:
        subjects: tuple[str, ...] = (_pick(rng, POLICY),)
        relation = _pick(rng, ("alone", "next to"))
        if relation == "next to":
            subjects = (*subjects, _pick(rng, HARMLESS))[:: int(rng.choice((1, -1)))]
        return Description(relation, subjects, style, setting)
    relation = _pick(rng, tuple(_RELATIONS), tuple(_RELATIONS.values()))
    return Description(relation, _subjects(rng, relation), style, setting)


def even_shares(shown: Sequence[Description]) -> NDArray[np.float64]:
    """How often to train on each of `shown`, as shares of 1: the more often, the rarer its rarest drawing is.

    A drawing is a subject in a style. The photograph of a horse is in ten times as many scenes as the
    cartoon of a trumpet, which is as hard to draw.
    """
    drawings = [[(subject, description.style) for subject in description.subjects] for description in shown]
    scenes_with = Counter(drawing for scene in drawings for drawing in scene)
    rarity = np.array([1 / min(scenes_with[drawing] for drawing in scene) for scene in drawings])
    shares: NDArray[np.float64] = rarity / rarity.sum()
    return shares


def _subjects(rng: np.random.Generator, relation: str) -> tuple[str, ...]:
    if relation == "riding":
        return _pick(rng, SAMPLE_PAIRS) if rng.random() < 0.04 else _pick(rng, _SEEN_PAIRS)
    if relation == "holding":
        return _pick(rng, RIDERS), _pick(rng, HELD)
    if relation == "inside":
        return _pick(rng, RIDERS), _pick(rng, tuple(CONTAINERS))
    first = _pick(rng, HARMLESS)
    if relation in ("alone", "two", "three"):
        return (first,)
    return first, _pick(rng, tuple(subject for subject in HARMLESS if subject != first))


_SEEN_PAIRS = seen_pairs()


def _jittered(rng: np.random.Generator, x: float, y: float) -> tuple[float, float]:
    dx, dy = rng.uniform(-0.02, 0.02, 2)
    return x + float(dx), y + float(dy)


def _pick(rng: np.random.Generator, choices: Sequence[Choice], weights: Sequence[float] | None = None) -> Choice:
    return choices[int(rng.choice(len(choices), p=weights))]
