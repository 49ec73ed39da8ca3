"""`sd-mlflow`: package, inspect, serve and try a Stable Diffusion model."""

from __future__ import annotations

import base64
import inspect as introspection
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from sd_mlflow.errors import InvalidParameter, SDMLflowError
from sd_mlflow.parameters import PARAMETERS, nearest

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Stable Diffusion as an MLflow model: package it once, and it answers everywhere.",
)
console = Console(stderr=True)

PackageArgument = Annotated[Path, typer.Argument(help="A package made by `sd-mlflow package`.")]
_PYTHON_TYPES: dict[str, type] = {"integer": int, "long": int, "double": float, "string": str, "boolean": bool}
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
#: What a person is told of a picture's flag.
_FLAGS = {
    "False": "",
    "True": ", blacked out: the safety checker flagged it",
    "NotChecked": ", not checked for safety: the package has no checker",
}
#: Parameters that a command line has no use for: the file's name says the format.
_NOT_FLAGS = ("image_format", "orient", "return_metadata")


@app.command()
def package(
    source: Annotated[
        str, typer.Argument(help="A diffusers folder, sd-emoji, or a hub id (CompVis/stable-diffusion-v1-4).")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="What the weights run in; float16 for GPUs older than Ampere, such as T4."),
    ] = "bfloat16",
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    register: Annotated[
        Optional[str],
        typer.Option(help="Also register it under this name in the registry at MLFLOW_TRACKING_URI."),
    ] = None,
    setting: Annotated[
        Optional[list[str]],
        typer.Option(help="NAME=VALUE, a limit of the package: max_prompts_per_request=4. Repeatable."),
    ] = None,
    without_safety_checker: Annotated[
        bool, typer.Option("--without-safety-checker", help="Package a checkpoint that has none.")
    ] = False,
) -> None:
    """Write a checkpoint as an MLflow model folder: safetensors, hashes, environment, signature.

    Example: sd-mlflow package sd-emoji --out model
    """
    from sd_mlflow import checkpoint, packaging

    settings = dict(_setting(text) for text in setting or [])
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    with console.status(f"Looking for {source}"):
        found = checkpoint.find(source, revision)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Packaging {found.name}", total=checkpoint.weights_size(found))
        written = packaging.package(
            found,
            out,
            dtype=dtype,
            settings=settings,
            without_safety_checker=without_safety_checker,
            advance=lambda size: progress.advance(task, size),
        )
    _say("Packaged", f"{written.name} in {written.dtype}, digest {written.digest[:12]}: {out}")
    if register:
        _say("Registered", f"as {packaging.register(out, register)}")
    _say("Next:", f"sd-mlflow serve {out}")


@app.command()
def inspect(directory: PackageArgument) -> None:
    """Say what a package holds, and check its hashes.

    Example: sd-mlflow inspect model
    """
    from sd_mlflow import manifest, packaging

    folder = directory / packaging.CHECKPOINT_PATH
    read = manifest.read(folder)
    with Progress(TextColumn("Checking hashes"), BarColumn(), DownloadColumn(), console=console) as progress:
        task = progress.add_task("", total=sum(entry.size for entry in read.files.values()))
        manifest.verify(folder, lambda size: progress.advance(task, size))
    title = f"{read.name}, {read.dtype}, digest {read.digest[:12]}"
    table = Table("file", Column("MB", justify="right"), "SHA-256", title=title)
    for path, entry in sorted(read.files.items()):
        table.add_row(path, f"{entry.size / 1e6:,.3f}", entry.sha256[:16])
    checker = "its own" if read.safety_checker else "NONE: images are flagged as NotChecked"
    revision = f"revision: {read.revision or 'none'}\n"
    Console().print(table, f"{revision}safety checker: {checker}\nevery file is as it was packaged")


@app.command()
def serve(
    directory: PackageArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 5001,
    threads: Annotated[int, typer.Option(min=1, help="Requests answered at once.")] = 8,
) -> None:
    """Run what a managed online endpoint runs, on loopback, until Ctrl-C.

    Example: sd-mlflow serve model --port 5001
    """
    from sd_mlflow import manifest, packaging
    from sd_mlflow.scoring.local import ServerError, serving

    manifest.read(directory / packaging.CHECKPOINT_PATH)  # says so now if it is no package
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server ends with this process
    body = '{"input_data": {"columns": ["text_prompt"], "data": ["a photograph of an astronaut riding a horse"]}}'
    with (
        console.status("Starting the Azure inference server") as status,
        serving(directory, port, threads=threads) as url,
    ):
        status.stop()
        _say("Serving", f"{directory}: POST {url}/score, until Ctrl-C")
        _say("Try:", f"curl -H 'Content-Type: application/json' {url}/score -d '{body}'")
        try:
            os.wait()
        except KeyboardInterrupt:
            _say("Stopped", str(directory))
        else:
            raise ServerError("the server stopped by itself; what it said is above")


def generate(prompt: str, out: Path, model: Optional[Path], **flags: Any) -> None:
    """Draw a prompt without a server.

    Example: sd-mlflow generate "a photograph of an astronaut riding a horse" --out x.png --seed 7
    """
    from sd_mlflow import contract
    from sd_mlflow.settings import Settings

    if out.suffix.lower() not in _FORMATS:
        raise InvalidParameter(f"--out must end in {', '.join(_FORMATS)}; got {out.name!r}")
    rows = [{"text_prompt": prompt}]
    parameters = {name: value for name, value in flags.items() if value is not None}
    parameters |= {"image_format": _FORMATS[out.suffix.lower()], "return_metadata": True}
    contract.parse(rows, parameters, Settings())  # a bad value is found before the model is loaded
    with console.status("Loading the model"):
        from sd_mlflow import checkpoint, manifest, packaging
        from sd_mlflow.model import TextToImage

        if model:
            manifest.read(model / packaging.CHECKPOINT_PATH)
            text_to_image = TextToImage.of_package(model)
        else:
            text_to_image = TextToImage(checkpoint.find(checkpoint.SD_EMOJI).folder, Settings())
    with console.status("Drawing"):
        (record,) = text_to_image.answer(rows, parameters)
    for number, (image, flag, seed) in enumerate(
        zip(record["generated_images"], record["nsfw_content_detected"], record["seed"], strict=True)
    ):
        file = out if number == 0 else out.with_stem(f"{out.stem}-{number + 1}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(image))
        _say(str(file), f"seed {seed}{_FLAGS[flag]}")
    text_to_image.close()


def _flags() -> list[introspection.Parameter]:
    """The parameters of `generate`: its own, then one flag for each row of the table."""
    prompt = typer.Argument(help="What to draw.")
    out = typer.Option(help="The picture to write: .png, .jpg or .webp.")
    model = typer.Option(help="A package made by `sd-mlflow package`; sd-emoji if not given.")
    keyword = introspection.Parameter.KEYWORD_ONLY
    own = [
        introspection.Parameter("prompt", keyword, annotation=Annotated[str, prompt]),
        introspection.Parameter("out", keyword, annotation=Annotated[Path, out]),
        introspection.Parameter("model", keyword, default=None, annotation=Annotated[Optional[Path], model]),
    ]
    for parameter in PARAMETERS.values():
        if parameter.name not in _NOT_FLAGS:
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
            own.append(introspection.Parameter(parameter.name, keyword, default=None, annotation=annotation))
    return own


generate.__signature__ = introspection.Signature(_flags())  # type: ignore[attr-defined]
app.command()(generate)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidParameter(f"--setting must be NAME=VALUE, got {text!r}")
    return name, value


def _say(what: str, text: str, color: str = "green") -> None:
    console.print(f"[{color}]{escape(what)}[/] {escape(text)}", soft_wrap=True, highlight=False)


def _problem(problem: ErrorDetails) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        from sd_mlflow.settings import Settings

        return f"unknown setting {name!r}{nearest(name, Settings.model_fields)}"
    return f"setting {name}: {problem['msg']}, got {problem['input']!r}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an expected failure is one line and exit status 1."""
    try:
        app(arguments)
    except SDMLflowError as error:
        problems = [str(error)]
    except ValidationError as error:
        problems = [_problem(problem) for problem in error.errors()]
    for problem in problems:
        _say("Error:", problem, "red")
    sys.exit(1)


if __name__ == "__main__":
    main()
