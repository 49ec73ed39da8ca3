"""`sd-mlflow package`, `inspect` and `serve`: a checkpoint becomes a package, and the package answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from sd_mlflow.cli.app import PackageArgument, console, say
from sd_mlflow.errors import InvalidParameter

if TYPE_CHECKING:
    from sd_mlflow.manifest import Manifest


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
    say("Packaged", f"{written.name} in {written.dtype}, digest {written.digest[:12]}: {out}")
    if register:
        say("Registered", f"as {packaging.register(out, register)}")
    say("Next:", f"sd-mlflow serve {out}")


def inspect(directory: PackageArgument) -> None:
    """Say what a package holds, and check its hashes.

    Example: sd-mlflow inspect model
    """
    read = checked(directory)
    title = f"{read.name}, {read.dtype}, digest {read.digest[:12]}"
    table = Table("file", Column("MB", justify="right"), "SHA-256", title=title)
    for path, entry in sorted(read.files.items()):
        table.add_row(path, f"{entry.size / 1e6:,.3f}", entry.sha256[:16])
    checker = "its own" if read.safety_checker else "NONE: images are flagged as NotChecked"
    revision = f"revision: {read.revision or 'none'}\n"
    Console().print(table, f"{revision}safety checker: {checker}\nevery file is as it was packaged")


def checked(directory: Path) -> Manifest:
    """The manifest of a package, every file of which is as it was packaged. Raises `PackageError`."""
    from sd_mlflow import manifest, packaging

    folder = directory / packaging.CHECKPOINT_PATH
    size = sum(entry.size for entry in manifest.read(folder).files.values())
    with Progress(TextColumn("Checking hashes"), BarColumn(), DownloadColumn(), console=console) as progress:
        task = progress.add_task("", total=size)
        return manifest.verify(folder, lambda size: progress.advance(task, size))


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
        say("Serving", f"{directory}: POST {url}/score, until Ctrl-C")
        say("Try:", f"curl -H 'Content-Type: application/json' {url}/score -d '{body}'")
        try:
            os.wait()
        except KeyboardInterrupt:
            say("Stopped", str(directory))
        else:
            raise ServerError("the server stopped by itself; what it said is above")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidParameter(f"--setting must be NAME=VALUE, got {text!r}")
    return name, value
