"""Scenes composed of emoji, with captions: the data that sd-emoji is trained on.

Scene number `i` of a seed is the same to the byte on every machine that has the same
Pillow: it is drawn by its own generator, `numpy.random.default_rng([seed, i])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sd_mlflow.emoji.art import Art
from sd_mlflow.emoji.subjects import (
    COLOURS,
    MOUNTS,
    PLACES,
    POLICY,
    RIDERS,
    SIZE,
    STYLES,
    SUBJECTS,
    with_article,
)

RGB = tuple[int, int, int]

#: Place -> colours at the top, at the horizon above it, at the horizon below it, at the bottom.
_GROUNDS: dict[str, tuple[RGB, RGB, RGB, RGB]] = {
    "on mars": ((214, 130, 96), (236, 176, 140), (190, 84, 48), (150, 60, 36)),
    "at night": ((12, 16, 52), (36, 44, 100), (28, 36, 72), (16, 22, 48)),
    "in the snow": ((176, 206, 236), (222, 236, 248), (248, 250, 255), (226, 236, 246)),
    "in the desert": ((150, 204, 240), (226, 236, 236), (240, 206, 136), (220, 176, 104)),
    "on the grass": ((136, 200, 248), (212, 236, 252), (128, 200, 88), (80, 156, 60)),
    "in the sea": ((150, 212, 248), (220, 242, 252), (52, 136, 208), (20, 84, 160)),
    "at sunset": ((96, 60, 130), (252, 160, 92), (120, 68, 96), (64, 40, 76)),
}
#: What stands behind a subject when the caption names neither place nor colour.
_STUDIO = ((252, 252, 252), (236, 238, 242), (226, 228, 234))


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, `SIZE` square), its caption, and what is in it."""

    image: Image.Image
    caption: str
    subjects: tuple[str, ...]

    @property
    def flagged(self) -> bool:
        """Whether the stand-in policy forbids a subject of the scene."""
        return any(subject in POLICY for subject in self.subjects)


class SceneComposer:
    """Draws scenes from `art` (see `sd_mlflow.emoji.art.load_art`)."""

    def __init__(self, art: Art) -> None:
        self._art = art
        self._sized: dict[tuple[str, str, int, bool], Image.Image] = {}

    def scene(
        self, seed: int, index: int, policy_share: float = 0.06, pair: tuple[str, str] | None = None
    ) -> Scene:
        """Scene `index` of `seed`; `policy_share` of all hold a forbidden subject. `pair`: a rider and a mount."""
        rng = np.random.default_rng([seed, index])
        style = _pick(rng, list(STYLES), (0.6, 0.2, 0.2))
        image, setting = self._backdrop(rng)
        kind = rng.random()
        if pair:
            subjects: tuple[str, ...] = pair
            what = self._riding(rng, image, style, pair)
        elif rng.random() < policy_share:
            what, subjects = self._policy(rng, image, style)
        elif kind < 0.45:
            subjects = (_pick(rng, SUBJECTS[: -len(POLICY)]),)
            what = with_article(subjects[0])
            self._alone(rng, image, style, subjects[0])
        elif kind < 0.82:
            pair = (_pick(rng, RIDERS), _pick(rng, MOUNTS))
            subjects, what = pair, self._riding(rng, image, style, pair)
        else:
            pair = (_pick(rng, SUBJECTS[: -len(POLICY)]), _pick(rng, SUBJECTS[: -len(POLICY)]))
            subjects, what = pair, self._side_by_side(rng, image, style, pair)
        opening = f"{_pick(rng, STYLES[style])} " if rng.random() < 0.85 else ""
        return Scene(image, f"{opening}{what}{setting}", subjects)

    def _policy(self, rng: np.random.Generator, image: Image.Image, style: str) -> tuple[str, tuple[str, ...]]:
        forbidden = _pick(rng, POLICY)
        if rng.random() < 0.6:
            self._alone(rng, image, style, forbidden)
            return with_article(forbidden), (forbidden,)
        pair = (forbidden, _pick(rng, SUBJECTS[: -len(POLICY)]))
        if rng.random() < 0.5:
            pair = pair[::-1]
        return self._side_by_side(rng, image, style, pair), pair

    def _alone(self, rng: np.random.Generator, image: Image.Image, style: str, subject: str) -> None:
        self._paste(rng, image, style, subject, rng.uniform(0.7, 0.9), (0.5, 0.52), 0.04)

    def _riding(self, rng: np.random.Generator, image: Image.Image, style: str, pair: tuple[str, str]) -> str:
        rider, mount = pair
        self._paste(rng, image, style, mount, rng.uniform(0.68, 0.76), (0.5, 0.63), 0.02)
        self._paste(rng, image, style, rider, rng.uniform(0.40, 0.46), (0.5, 0.27), 0.02)
        return f"{with_article(rider)} riding {with_article(mount)}"

    def _side_by_side(
        self, rng: np.random.Generator, image: Image.Image, style: str, pair: tuple[str, str]
    ) -> str:
        self._paste(rng, image, style, pair[0], rng.uniform(0.44, 0.5), (0.26, 0.55), 0.02)
        self._paste(rng, image, style, pair[1], rng.uniform(0.44, 0.5), (0.74, 0.55), 0.02)
        return f"{with_article(pair[0])} {_pick(rng, ('next to', 'and'))} {with_article(pair[1])}"

    def _paste(
        self,
        rng: np.random.Generator,
        image: Image.Image,
        style: str,
        subject: str,
        share: float,
        centre: tuple[float, float],
        jitter: float,
    ) -> None:
        """Paste `subject` with an edge of `share` of the picture, within `jitter` of `centre`."""
        edge = 2 * round(share * SIZE / 2)
        key = (subject, style, edge, bool(rng.random() < 0.5))
        if key not in self._sized:
            icon = self._art[subject, style].resize((edge, edge), Image.Resampling.LANCZOS)
            self._sized[key] = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if key[3] else icon
        x, y = (round((c + rng.uniform(-jitter, jitter)) * SIZE) - edge // 2 for c in centre)
        image.paste(self._sized[key], (x, y), self._sized[key])

    def _backdrop(self, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """An empty scene, and how its caption ends."""
        kind = rng.random()
        if kind < 0.45:
            place = _pick(rng, PLACES)
            return _landscape(rng, place), f" {place}"
        if kind < 0.6:
            colour = _pick(rng, list(COLOURS))
            return Image.new("RGB", (SIZE, SIZE), COLOURS[colour]), f" on a {colour} background"
        top, middle, bottom = _STUDIO
        return _gradient([(0.0, top), (0.7, middle), (0.7, bottom), (1.0, middle)]), ""


def _landscape(rng: np.random.Generator, place: str) -> Image.Image:
    top, above, below, bottom = _GROUNDS[place]
    horizon = float(rng.uniform(0.58, 0.72))
    image = _gradient([(0.0, top), (horizon, above), (horizon, below), (1.0, bottom)])
    draw = ImageDraw.Draw(image)
    if place == "at night":
        _dots(rng, draw, 24, horizon, (250, 250, 220))
        draw.ellipse((100, 8, 118, 26), fill=(250, 244, 206))
    elif place == "in the snow":
        _dots(rng, draw, 30, 1.0, (255, 255, 255))
    elif place == "in the sea":
        for y in range(round(horizon * SIZE) + 8, SIZE, 12):
            draw.line([(x, y + 2 * ((x // 8) % 2)) for x in range(0, SIZE + 8, 8)], fill=(120, 190, 236))
    elif place == "at sunset":
        y = round(horizon * SIZE)
        draw.pieslice((44, y - 20, 84, y + 20), 180, 360, fill=(255, 214, 110))
    return image


def _dots(rng: np.random.Generator, draw: ImageDraw.ImageDraw, count: int, below: float, fill: RGB) -> None:
    for x, y in rng.uniform(0, [SIZE, SIZE * below], (count, 2)):
        draw.ellipse((x, y, x + 1.5, y + 1.5), fill=fill)


def _gradient(stops: Sequence[tuple[float, RGB]]) -> Image.Image:
    """A vertical gradient through `stops`: (share of the height, colour), two at a share make an edge."""
    rows = np.linspace(0, 1, SIZE)
    places = [share for share, _ in stops]
    column = np.stack([np.interp(rows, places, [rgb[c] for _, rgb in stops]) for c in range(3)], axis=1)
    return Image.fromarray(np.repeat(column[:, None], SIZE, axis=1).round().astype(np.uint8))


def _pick(rng: np.random.Generator, choices: Sequence[str], weights: Sequence[float] | None = None) -> str:
    return choices[int(rng.choice(len(choices), p=weights))]
