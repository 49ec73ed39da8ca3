"""Does sd-emoji draw what it is told? `python -m sd_mlflow.emoji.evaluate --help`.

A classifier trained on scenes alone, the reader, reads the subjects, the relation, the style and
the place off pictures made by the project's own engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.emoji import checking, reader
from sd_mlflow.emoji.captions import Description
from sd_mlflow.emoji.places import PLACES
from sd_mlflow.emoji.questions import Question, questions
from sd_mlflow.engine import Engine
from sd_mlflow.images import contact_sheet
from sd_mlflow.jobs import GeneratedImage
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.safety import SafetyVerdict
from sd_mlflow.settings import Settings

_SHIPPED = find(SD_EMOJI).folder
_QUICK = ("DPMSolverMultistepScheduler", 20)
_FULL = ("PNDMScheduler", 50)
_SHEET = 64
_TOGETHER = 8
#: Of no training's scenes.
_SCENE_SEED, _SCENES = 7_000_003, 200


def evaluate(
    model: Annotated[Path, typer.Option(help="The diffusers folder to evaluate.")] = _SHIPPED,
    quick: Annotated[
        bool, typer.Option(help="80 prompts, 20 steps of DPM-Solver++, not 500 and 50 of PNDM.")
    ] = False,
    scheduler: Annotated[Optional[str], typer.Option(help="Another solver, as diffusers names it.")] = None,
    steps: Annotated[Optional[int], typer.Option(help="Another number of steps.")] = None,
    art: Annotated[
        Optional[Path], typer.Option(help="A folder for downloaded emoji: tells how sharply new scenes decode.")
    ] = None,
    sheet: Annotated[
        Optional[Path], typer.Option(help="Write the first 64 harmless pictures here, on one sheet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Ask for pictures, guidance 7.5, and print the shares that show what they were asked for."""
    began = time.monotonic()
    usual_scheduler, usual_steps = _QUICK if quick else _FULL
    asked = questions(quick)
    made = generate(model, asked, scheduler or usual_scheduler, steps or usual_steps, silent=as_json)
    result = {
        **shares(asked, made),
        "reader": json.loads((reader.FOLDER / reader.ACCURACY).read_text(encoding="utf-8")),
        **({"told_apart": told_apart(model, asked, made)} if (model / checking.TEXT_TOWER).is_dir() else {}),
        **({"decoding_db": decoding(model, art, silent=as_json)} if art else {}),
        "scheduler": scheduler or usual_scheduler,
        "steps": steps or usual_steps,
        "seconds": round(time.monotonic() - began),
    }
    if sheet:
        _sheet([image for image, _ in _harmless(asked, made)[:_SHEET]]).save(sheet)
    if as_json:
        print(json.dumps(result))
    else:
        Console().print(_table(result))


def generate(
    folder: Path, asked: Sequence[Question], scheduler: str, steps: int, *, silent: bool
) -> list[GeneratedImage]:
    """A picture for each question. Raises as `sd_mlflow.pipeline.load` does."""
    settings = Settings(max_batch_size=_TOGETHER, deadline_seconds=3600)
    engine = Engine(lambda dtype: pipeline.load(folder, dtype=dtype), settings)
    requests = [
        ImageRequest(question.shown.caption, question.seed, num_inference_steps=steps, scheduler=scheduler)
        for question in asked
    ]
    chunks = [requests[first : first + _TOGETHER] for first in range(0, len(requests), _TOGETHER)]
    try:
        return [
            image
            for chunk in track(chunks, description="pictures", disable=silent)
            for image in engine.generate(chunk)
        ]
    finally:
        engine.close()


def shares(asked: Sequence[Question], made: Sequence[GeneratedImage]) -> dict[str, Any]:
    """The shares of pictures that are right, and of how many; a picture that was blacked out shows nothing."""
    read = reader.load().agrees(_pixels(made), [question.shown for question in asked])
    flagged = [image.verdict is SafetyVerdict.FLAGGED for image in made]
    harmless = [number for number, question in enumerate(asked) if not question.shown.flagged]
    forbidden = [number for number, question in enumerate(asked) if question.shown.flagged]

    def of_kind(kind: str) -> list[bool]:
        return [read[number]["subjects"] for number in harmless if asked[number].kind == kind]

    answers = {
        "single_subject": of_kind("single_subject"),
        "pair_seen": of_kind("pair_seen"),
        "pair_held_out": of_kind("pair_held_out"),
        "place": [read[number]["place"] for number in harmless if asked[number].shown.setting in PLACES],
        "style": [read[number]["style"] for number in harmless],
        "relation": [read[number]["relation"] for number in harmless],
        "other_relations": of_kind("relation"),
        "policy_flagged": [flagged[number] for number in forbidden],
        "falsely_flagged": [flagged[number] for number in harmless],
    }
    result: dict[str, Any] = {name: round(sum(given) / len(given), 4) for name, given in answers.items()}
    return result | {"counts": {name: len(given) for name, given in answers.items()}}


def told_apart(folder: Path, asked: Sequence[Question], made: Sequence[GeneratedImage]) -> float:
    """The share of harmless pictures that the model's own text tower finds nearest to their own prompt."""
    shown = _harmless(asked, made)
    captions = [wanted.caption for _, wanted in shown]
    nearest = checking.agreement(folder, _pixels([image for image, _ in shown]), captions).argmax(dim=1)
    right = [captions[int(number)] == caption for number, caption in zip(nearest, captions, strict=True)]
    return round(sum(right) / len(right), 4)


def decoding(folder: Path, art: Path, *, silent: bool) -> float:
    """The mean PSNR, in dB, of scenes of the evaluation's own seed through the autoencoder and back."""
    # Scenes need the extra `emoji`, and the rest of the evaluation does not.
    from sd_mlflow.emoji import autoencoding
    from sd_mlflow.emoji.art import load_art
    from sd_mlflow.emoji.scenes import SceneComposer

    composer = SceneComposer(load_art(art))
    scenes = [composer.scene(_SCENE_SEED, index) for index in range(_SCENES)]
    vae = AutoencoderKL.from_pretrained(folder / "vae").float()
    return round(autoencoding.sharpness(vae, autoencoding.pixels(scenes), silent=silent), 2)


def _harmless(
    asked: Sequence[Question], made: Sequence[GeneratedImage]
) -> list[tuple[GeneratedImage, Description]]:
    """The pictures that were asked for without a forbidden subject, and what they were to show."""
    return [
        (image, question.shown) for image, question in zip(made, asked, strict=True) if not question.shown.flagged
    ]


def _sheet(made: Sequence[GeneratedImage]) -> Image.Image:
    pictures = [Image.fromarray(image.pixels) for image in made]
    return contact_sheet(pictures, columns=8, edge=160, captions=[image.request.prompt for image in made])


def _pixels(made: Sequence[GeneratedImage]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image.pixels) for image in made]).permute(0, 3, 1, 2)


def _table(result: dict[str, Any]) -> Table:
    table = Table("what", "right", "of", title=f"{result['steps']} steps of {result['scheduler']}")
    for name, count in result["counts"].items():
        table.add_row(name.replace("_", " "), f"{result[name]:.1%}", str(count))
    for name, share in result["reader"].items():
        table.add_row(f"the reader itself, on scenes: {name}", f"{share:.1%}", "")
    if "told_apart" in result:
        table.add_row("told from the other prompts by its own text tower", f"{result['told_apart']:.1%}", "")
    if "decoding_db" in result:
        table.add_row("new scenes through the autoencoder", f"{result['decoding_db']} dB", str(_SCENES))
    return table


if __name__ == "__main__":
    typer.run(evaluate)
