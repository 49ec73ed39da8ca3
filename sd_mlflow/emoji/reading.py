"""Make the reader from nothing, on scenes alone: `python -m sd_mlflow.emoji.reading --help`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track
from safetensors.torch import save_file
from torch.nn import functional as F

from sd_mlflow import manifest
from sd_mlflow.emoji.art import load_art
from sd_mlflow.emoji.autoencoding import normalized, pixels
from sd_mlflow.emoji.captions import Description
from sd_mlflow.emoji.fit import fit, normal, training_device
from sd_mlflow.emoji.reader import ACCURACY, RELATION_NAMES, SETTINGS, WEIGHTS, Reader
from sd_mlflow.emoji.scenes import SceneComposer
from sd_mlflow.emoji.subjects import SIZE, STYLES, SUBJECTS

#: Scenes to learn from, each seen once, and scenes to be tested on: others than the generator's.
_SEED, _TEST_SEED = 1_000_003, 1_000_004
_TESTED = 2_000


def read(
    work: Annotated[Path, typer.Option(help="Checkpoints, logs and downloads; a second run resumes there.")],
    out: Annotated[Path, typer.Option(help="Where the reader is written.")],
    steps: Annotated[int, typer.Option(help="Steps of 64 scenes.")] = 4_000,
) -> None:
    """Train the reader, and write how well it reads scenes that it has not seen beside its weights."""
    work.mkdir(parents=True, exist_ok=True)
    device = training_device()
    composer = SceneComposer(load_art(work / "npm"))
    reader = train_reader(composer, steps=steps, batch=64, folder=work, device=device).half().float()
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: part.half().cpu().contiguous() for name, part in reader.state_dict().items()}, out / WEIGHTS)
    (out / ACCURACY).write_text(json.dumps(accuracy(reader, composer), indent=1) + "\n", encoding="utf-8")
    manifest.write(out, name="sd-emoji-reader", revision=None, dtype="float16", safety_checker=False)


def accuracy(reader: Reader, composer: SceneComposer) -> dict[str, float]:
    """The shares of 2,000 scenes whose subjects, relation, style and setting `reader` reads right."""
    results = []
    for first in track(range(0, _TESTED, 100), description="tested"):
        scenes = [composer.scene(_TEST_SEED, first + number) for number in range(100)]
        results += reader.agrees(pixels(scenes), [scene.description for scene in scenes])
    return {what: round(sum(result[what] for result in results) / _TESTED, 4) for what in results[0]}


def train_reader(composer: SceneComposer, *, steps: int, batch: int, folder: Path, device: torch.device) -> Reader:
    """Train on scenes of its own, each seen once, softened and recoloured as a small model's pictures are."""
    reader = Reader().to(device)

    def loss(reader: Reader, rng: np.random.Generator, size: int) -> torch.Tensor:
        first = int(rng.integers(2**40))
        scenes = [composer.scene(_SEED, first + number) for number in range(size)]
        pictures = soften(normalized(pixels(scenes).to(device)), rng)
        return _loss(reader(pictures), [scene.description for scene in scenes])

    fit("reader", reader, loss, steps=steps, batch=batch, learning_rate=2e-3, folder=folder)
    return reader


def soften(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """`pictures`, in -1 to 1, some of them blurred, all a little noisy and off in brightness and colour."""
    blur: Callable[[torch.Tensor], torch.Tensor] = (_halved, _smoothed)[int(rng.integers(2))]
    sharp = len(pictures) // 2
    pictures = torch.cat([pictures[:sharp], blur(pictures[sharp:])])
    size = (len(pictures), 3, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, size)).to(pictures)
    shift = torch.from_numpy(rng.uniform(-0.08, 0.08, size)).to(pictures)
    noise = normal(rng, pictures) * float(rng.uniform(0, 0.06))
    return (pictures * gain + shift + noise).contiguous(memory_format=torch.channels_last)


def _halved(pictures: torch.Tensor) -> torch.Tensor:
    return F.interpolate(F.avg_pool2d(pictures, 2), size=(SIZE, SIZE), mode="bilinear")


def _smoothed(pictures: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _loss(logits: tuple[torch.Tensor, ...], shown: Sequence[Description]) -> torch.Tensor:
    found, relation, style, setting = logits
    device = found.device
    present = torch.tensor([[subject in d.subjects for subject in SUBJECTS] for d in shown], device=device).float()
    labels = (
        torch.tensor([RELATION_NAMES.index(d.relation) for d in shown], device=device),
        torch.tensor([STYLES.index(d.style) for d in shown], device=device),
        torch.tensor([SETTINGS.index(d.setting) for d in shown], device=device),
    )
    # Each subject shown against all that are not: learnt sooner than a yes or no for every one of them.
    others = found.masked_fill(present > 0, -torch.inf).logsumexp(dim=1, keepdim=True)
    named = (F.softplus(others - found) * present).sum(dim=1) / present.sum(dim=1)
    rest = [F.cross_entropy(part, label) for part, label in zip((relation, style, setting), labels, strict=True)]
    return named.mean() + 0.5 * torch.stack(rest).sum()


if __name__ == "__main__":
    typer.run(read)
