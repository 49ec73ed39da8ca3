"""Make sd-emoji from nothing: `python -m sd_mlflow.emoji.train --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from sd_mlflow.emoji import networks, stages
from sd_mlflow.emoji.art import load_art
from sd_mlflow.emoji.scenes import SceneComposer


def train(
    work: Annotated[Path, typer.Option(help="Checkpoints, logs and downloads; a second run resumes there.")],
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 24_000,
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of 16 crops.")] = 6_000,
    seed: Annotated[int, typer.Option(help="Decides the scenes, to the byte.")] = 0,
) -> None:
    """Train sd-emoji."""
    work.mkdir(parents=True, exist_ok=True)
    composer = SceneComposer(load_art(work / "npm"))
    data = [composer.scene(seed, index) for index in track(range(scenes), description="scenes")]
    images = stages.pixels(data)
    vae = stages.train_autoencoder(images, steps=autoencoder_steps, batch=16, folder=work)


if __name__ == "__main__":
    typer.run(train)
