"""The command line's frame: the app, how it speaks, and how it fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console
from rich.markup import escape

from sd_mlflow.errors import SDMLflowError
from sd_mlflow.parameters import nearest

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Stable Diffusion as an MLflow model: package it once, and it answers everywhere.",
)
console = Console(stderr=True)

PackageArgument = Annotated[Path, typer.Argument(help="A package made by `sd-mlflow package`.")]


def say(what: str, text: str, color: str = "green") -> None:
    """One line for a person: `what` in `color`, then `text` as it is."""
    console.print(f"[{color}]{escape(what)}[/] {escape(text)}", soft_wrap=True, highlight=False, emoji=False)


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
        say("Error:", problem, "red")
    sys.exit(1)
