"""Where a scene is: fourteen places and times of day, eight colours, and a studio when nothing is said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sd_mlflow.emoji.subjects import SIZE

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
    "at sunrise": ((150, 200, 240), (255, 224, 150), (176, 196, 120), (120, 156, 96)),
    "in the forest": ((120, 168, 120), (176, 208, 160), (84, 116, 60), (56, 84, 44)),
    "under water": ((72, 190, 214), (36, 130, 178), (24, 104, 156), (12, 60, 112)),
    "in space": ((16, 8, 28), (44, 16, 64), (44, 16, 64), (10, 6, 22)),
    "in the rain": ((96, 108, 124), (140, 152, 166), (92, 104, 112), (70, 80, 90)),
    "on the beach": ((120, 204, 250), (196, 234, 250), (246, 222, 164), (236, 204, 138)),
    "in the fog": ((206, 210, 212), (226, 228, 228), (212, 216, 216), (190, 194, 196)),
}
PLACES = tuple(_GROUNDS)

COLOURS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "red": (224, 80, 72),
    "blue": (84, 140, 226),
    "green": (96, 184, 104),
    "yellow": (248, 216, 96),
    "pink": (246, 164, 190),
    "purple": (160, 120, 210),
    "grey": (168, 172, 178),
}

#: What stands behind a subject when the caption names neither place nor colour.
_STUDIO = ((252, 252, 252), (236, 238, 242), (226, 228, 234))


def backdrop(rng: np.random.Generator, setting: str | None) -> Image.Image:
    """An empty scene, RGB and `SIZE` square: a place, a colour, or the studio for None."""
    if setting is None:
        top, middle, bottom = _STUDIO
        return _gradient([(0.0, top), (0.7, middle), (0.7, bottom), (1.0, middle)])
    if setting in COLOURS:
        return Image.new("RGB", (SIZE, SIZE), COLOURS[setting])
    return _landscape(rng, setting)


def foreground(rng: np.random.Generator, image: Image.Image, setting: str | None) -> None:
    """Draw on `image` what is before the subjects: rain, fog, bubbles."""
    draw = ImageDraw.Draw(image, "RGBA")
    if setting == "in the rain":
        for x, y in rng.uniform(-8, SIZE, (60, 2)):
            draw.line((x, y, x - 3, y + 10), fill=(206, 222, 240, 200))
    elif setting == "in the fog":
        for y in rng.uniform(0.55, 0.95, 4) * SIZE:
            draw.rectangle((0, y, SIZE, y + 9), fill=(232, 234, 234, 110))
    elif setting == "under water":
        for x, y, radius in rng.uniform((0, 0, 2), (SIZE, SIZE, 5), (12, 3)):
            draw.ellipse((x, y, x + 2 * radius, y + 2 * radius), outline=(214, 244, 252, 220))


def _landscape(rng: np.random.Generator, place: str) -> Image.Image:
    top, above, below, bottom = _GROUNDS[place]
    horizon = float(rng.uniform(0.58, 0.72))
    image = _gradient([(0.0, top), (horizon, above), (horizon, below), (1.0, bottom)])
    draw, y = ImageDraw.Draw(image), round(horizon * SIZE)
    if place == "at night":
        _dots(rng, draw, 24, horizon, (250, 250, 220))
        draw.ellipse((100, 8, 118, 26), fill=(250, 244, 206))
    elif place == "in space":
        _dots(rng, draw, 60, 1.0, (240, 230, 255))
        draw.ellipse((4, 6, 30, 32), fill=(226, 120, 60))
        draw.line((-2, 26, 36, 12), fill=(250, 214, 150), width=3)
    elif place == "in the snow":
        _dots(rng, draw, 30, 1.0, (255, 255, 255))
    elif place == "in the sea":
        _waves(draw, y + 8, 12, (120, 190, 236))
    elif place == "on the beach":
        draw.rectangle((0, y - 16, SIZE, y), fill=(40, 150, 214))
        draw.ellipse((102, 6, 122, 26), fill=(255, 236, 110))
    elif place == "under water":
        for x in (8, 44, 84):
            draw.polygon([(x, 0), (x + 14, 0), (x + 34, y), (x + 4, y)], fill=(96, 204, 224))
    elif place == "at sunset":
        draw.pieslice((44, y - 20, 84, y + 20), 180, 360, fill=(255, 214, 110))
    elif place == "at sunrise":
        draw.pieslice((34, y - 30, 94, y + 30), 180, 360, fill=(255, 250, 214))
    elif place == "in the forest":
        _trunks(rng, draw, y)
    elif place == "in the fog":
        for x in rng.uniform(0, SIZE, 5):
            draw.polygon([(x - 12, y), (x, y - 44), (x + 12, y)], fill=(192, 200, 202))
    return image


def _waves(draw: ImageDraw.ImageDraw, top: int, apart: int, fill: RGB) -> None:
    for y in range(top, SIZE, apart):
        draw.line([(x, y + 2 * ((x // 8) % 2)) for x in range(0, SIZE + 8, 8)], fill=fill)


def _trunks(rng: np.random.Generator, draw: ImageDraw.ImageDraw, ground: int) -> None:
    for x in (8, 34, 60, 92, 118):
        left = x + float(rng.uniform(-6, 6))
        draw.rectangle((left - 4, 0, left + 4, ground), fill=(104, 76, 52))
        draw.ellipse((left - 18, -20, left + 18, 28), fill=(48, 110, 56))


def _dots(rng: np.random.Generator, draw: ImageDraw.ImageDraw, count: int, below: float, fill: RGB) -> None:
    for x, y in rng.uniform(0, [SIZE, SIZE * below], (count, 2)):
        draw.ellipse((x, y, x + 1.5, y + 1.5), fill=fill)


def _gradient(stops: Sequence[tuple[float, RGB]]) -> Image.Image:
    """A vertical gradient through `stops`: (share of the height, colour), two at a share make an edge."""
    rows = np.linspace(0, 1, SIZE)
    places = [share for share, _ in stops]
    column = np.stack([np.interp(rows, places, [rgb[c] for _, rgb in stops]) for c in range(3)], axis=1)
    return Image.fromarray(np.repeat(column[:, None], SIZE, axis=1).round().astype(np.uint8))
