"""The curve of a training's loss, drawn from its log."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 40


def draw_curve(log: Path, out: Path) -> None:
    """Draw the `loss` of every line of `log` over its `step`, the loss on a logarithmic scale, as PNG."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    losses = [math.log10(max(line["loss"], 1e-9)) for line in lines]
    lowest, highest = min(losses), max(losses)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)

    def point(step: int, loss: float) -> tuple[float, float]:
        right = (_WIDTH - 2 * _MARGIN) * step / steps[-1]
        down = (_HEIGHT - 2 * _MARGIN) * (highest - loss) / max(highest - lowest, 1e-9)
        return _MARGIN + right, _MARGIN + down

    draw.rectangle((_MARGIN, _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN), outline=(200, 200, 200))
    points = [point(step, loss) for step, loss in zip(steps, losses, strict=True)]
    draw.line([points[0], *points], fill=(40, 90, 200), width=2)
    draw.text((_MARGIN, 12), f"{log.stem}: loss {10 ** losses[-1]:.4f} after {steps[-1]} steps", fill="black")
    draw.text((4, _MARGIN), f"{10**highest:.3g}", fill="black")
    draw.text((4, _HEIGHT - _MARGIN - 10), f"{10**lowest:.3g}", fill="black")
    image.save(out)
