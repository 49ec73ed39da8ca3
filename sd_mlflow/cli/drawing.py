"""`sd-mlflow generate` and `batch`: pictures without a server, one prompt or a million."""

from __future__ import annotations

import base64
import inspect
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sd_mlflow.cli.app import console, say
from sd_mlflow.errors import InvalidParameter, SDMLflowError
from sd_mlflow.parameters import PARAMETERS

if TYPE_CHECKING:
    from sd_mlflow.model import TextToImage
    from sd_mlflow.progress import StepProgress

_PYTHON_TYPES: dict[str, type] = {"integer": int, "long": int, "double": float, "string": str, "boolean": bool}
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
#: What a person is told of a picture's flag.
FLAGS = {
    "False": "",
    "True": ", blacked out: the safety checker flagged it",
    "NotChecked": ", not checked for safety: the package has no checker",
}
ModelOption = Annotated[
    Optional[Path], typer.Option(help="A package made by `sd-mlflow package`; sd-emoji if not given.")
]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    model: ModelOption = None,
    preview_every: Annotated[
        Optional[int], typer.Option(min=1, help="Also write the picture as it is after every so many steps.")
    ] = None,
    **flags: Any,
) -> None:
    """Draw a prompt without a server.

    Example: sd-mlflow generate "a photograph of an astronaut riding a horse" --out x.png --seed 7
    """
    from sd_mlflow import contract
    from sd_mlflow.settings import Settings

    if out.suffix.lower() not in _FORMATS:
        raise InvalidParameter(f"--out must end in {', '.join(_FORMATS)}; got {out.name!r}")
    rows = [{"text_prompt": prompt}]
    parameters = given(flags) | {"image_format": _FORMATS[out.suffix.lower()], "return_metadata": True}
    contract.parse(rows, parameters, Settings())  # a bad value is found before the model is loaded
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(_load(model)) as text_to_image, _bars() as progress:
        watcher = _Watcher(progress, out, preview_every)
        (record,) = text_to_image.answer(rows, parameters, watcher)
    for number, (image, flag, seed) in enumerate(
        zip(record["generated_images"], record["nsfw_content_detected"], record["seed"], strict=True)
    ):
        file = out if number == 0 else out.with_stem(f"{out.stem}-{number + 1}")
        file.write_bytes(base64.b64decode(image))
        say(str(file), f"seed {seed}{FLAGS[flag]}")


def batch(
    source: Annotated[Path, typer.Argument(help="A CSV, JSONL or Parquet file of prompts, or a folder of them.")],
    *,
    out: Annotated[Path, typer.Option(help="The folder for images, predictions.jsonl and contact sheets.")],
    model: ModelOption = None,
    resume: Annotated[bool, typer.Option(help="Keep the images that an earlier run has made.")] = True,
    **flags: Any,
) -> None:
    """Draw every prompt of a file or a folder; run it again after a stop, and it makes only what is missing.

    A file has a column text_prompt (or prompt), and any parameter as a column, which overrides
    the flag of the same name in its row.

    Example: sd-mlflow batch prompts.csv --out pictures --num-inference-steps 20
    """
    from sd_mlflow import bulk, contract, report, tables
    from sd_mlflow.settings import Settings
    from sd_mlflow.store import ImageStore

    files = tables.files_of(source)
    parameters = given(flags)
    contract.parse([{"text_prompt": "a prompt"}], parameters, Settings())
    with console.status("Counting prompts"):
        total = sum(tables.count(file) for file in files)
    summary = report.Summary()
    again = "run the same command again, and it goes on where it was"
    try:
        with (
            bulk.working_in(out),
            closing(_load(model, **bulk.SETTINGS)) as text_to_image,
            bulk.predictions_file(out) as lines,
            _bars() as progress,
        ):
            task = progress.add_task("Drawing", total=total)
            scorer = bulk.Scorer(text_to_image, ImageStore(out), parameters, resume=resume)
            for prediction in (prediction for file in files for prediction in scorer.score(file)):
                print(prediction.to_json(), file=lines)
                summary.add(prediction, out)
                progress.update(task, advance=prediction.row >= 0, description=summary.line())
            summary.write_sheets(out)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise SDMLflowError(f"{out} cannot be written ({why}): mend that, then {again}") from None
    except KeyboardInterrupt:
        say("Stopped:", f"{summary.line()}; {again}", "yellow")
        raise typer.Exit(130) from None
    say("Done:", f"{summary.line()}, {summary.rate()}: {out}")


class _Watcher:
    """Moves a bar for every image in work, and writes previews beside `out`."""

    def __init__(self, progress: Progress, out: Path, preview_every: int | None) -> None:
        self._progress = progress
        self._out = out
        self._preview_every = preview_every
        self._bars: dict[int, TaskID] = {}

    def __call__(self, done: StepProgress) -> None:
        seed = done.request.seed
        if seed not in self._bars:
            self._bars[seed] = self._progress.add_task(f"Drawing, seed {seed}", total=done.steps)
        self._progress.update(self._bars[seed], completed=done.step)
        if self._preview_every and done.step % self._preview_every == 0 and done.step < done.steps:
            file = self._out.with_name(f"{self._out.stem}-seed-{seed}-step-{done.step}.png")
            small = Image.fromarray(done.preview())
            small.resize((8 * small.width, 8 * small.height), Image.Resampling.BICUBIC).save(file)


def _bars() -> Progress:
    """Bars that say what is done, of how much, and how long it still takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's `flags` that a person gave."""
    return {name: value for name, value in flags.items() if value is not None}


def _load(model: Path | None, **settings: Any) -> TextToImage:
    """The package `model`, or sd-emoji, with `settings` for what neither says."""
    with console.status("Loading the model"):
        from sd_mlflow import checkpoint, manifest, packaging
        from sd_mlflow.model import TextToImage
        from sd_mlflow.settings import Settings

        if model is None:
            return TextToImage(checkpoint.find(checkpoint.SD_EMOJI).folder, Settings(**settings))
        manifest.read(model / packaging.CHECKPOINT_PATH)  # says so if it is no package
        return TextToImage.of_package(model, **settings)


def with_flags(command: Callable[..., None], *left_out: str) -> None:
    """Give `command` one flag for each row of the table but those `left_out`, instead of its `**flags`."""
    signature = inspect.signature(command, eval_str=True)
    *own, _ = signature.parameters.values()
    for parameter in PARAMETERS.values():
        if parameter.name not in left_out:
            words = parameter.description
            if parameter.choices:
                words += f" One of {', '.join(parameter.choices)}."
            if parameter.maximum is not None:
                words += f" {parameter.minimum:g} to {parameter.maximum:.0f}."
            if parameter.multiple_of:
                words += f" A multiple of {parameter.multiple_of}."
            if parameter.default not in (None, ""):
                words += f" Default {parameter.default}."
            kind: Any = Optional[_PYTHON_TYPES[parameter.kind]]
            annotation = Annotated[kind, typer.Option(help=words)]
            own.append(
                inspect.Parameter(
                    parameter.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
                )
            )
    command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]


with_flags(generate, "image_format", "orient", "return_metadata")
with_flags(batch, "orient", "return_metadata")
