"""The README tells what is true: its tables are the code's, and its commands exist."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from sd_mlflow.cli import app
from sd_mlflow.parameters import PARAMETERS
from sd_mlflow.settings import Settings

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def parameter_table() -> str:
    """The parameters as the README lists them."""
    lines = ["| name | type | default | bounds | |", "|---|---|---|---|---|"]
    for p in PARAMETERS.values():
        bounds = ", ".join(f"`{choice}`" for choice in p.choices)
        if p.maximum is not None:
            bounds = f"{p.minimum:g} to {p.maximum:.0f}"
        if p.multiple_of:
            bounds += f", multiples of {p.multiple_of}"
        default = {None: "", "": '`""`'}.get(p.default, f"`{str(p.default).lower()}`")
        lines.append(f"| `{p.name}` | {p.kind} | {default} | {bounds} | {p.description} |")
    return "\n".join(lines)


def settings_table() -> str:
    """The settings as the README lists them."""
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{name}` | `{str(field.default).lower()}` | {field.description} |")
    return "\n".join(lines)


def test_the_tables_are_those_of_the_code() -> None:
    assert parameter_table() in README
    assert settings_table() in README


@pytest.mark.parametrize("command", sorted(set(re.findall(r"sd-mlflow (\w+)", README))))
def test_commands_that_it_names_exist(command: str) -> None:
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_files_that_it_links_to_exist(path: str) -> None:
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w+)", README))))
def test_make_targets_that_it_names_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
