"""The house: who may import whom, and what an import may load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "sd_mlflow"

#: Room -> the rooms it may import. Inward only: a room may not import one that imports it.
ALLOWED = {
    "errors": set(),
    "settings": set(),
    "presets": set(),
    "parameters": {"errors", "presets"},
    "manifest": {"errors"},
    "tensors": {"errors", "manifest"},
    "prompts": {"errors"},
    "schedulers": {"errors", "parameters"},
    "execution": set(),
    "pipeline": {"errors", "execution", "manifest", "parameters", "prompts"},
    "safety": {"errors"},
    "images": {"safety"},
    "features": set(),
    "denoising": {"features", "parameters", "pipeline", "presets", "safety", "schedulers"},
    "batching": set(),
    "progress": {"parameters", "pipeline", "safety"},
    "jobs": {"denoising", "errors", "parameters", "progress", "safety"},
    "engine": {
        "batching",
        "denoising",
        "errors",
        "jobs",
        "parameters",
        "pipeline",
        "progress",
        "safety",
        "settings",
    },
    "contract": {"errors", "parameters", "settings"},
    "forms": {"contract", "errors", "parameters"},
    "model": {
        "contract",
        "engine",
        "errors",
        "forms",
        "images",
        "jobs",
        "parameters",
        "pipeline",
        "progress",
        "settings",
    },
    "entry": {"model"},
    "checkpoint": {"errors", "manifest", "tensors"},
    "tables": {"contract", "errors", "parameters"},
    "store": {"contract", "images"},
    "bulk": {"contract", "jobs", "errors", "model", "parameters", "store", "tables"},
    "packaging": {"checkpoint", "contract", "errors", "manifest", "settings"},
    "full_size": {"checkpoint", "emoji", "manifest", "tensors"},
    "scoring": {"bulk", "contract", "errors", "forms", "model", "parameters", "settings", "store", "tables"},
    "azure": {"errors", "manifest"},
    "demo": {"checkpoint", "images", "packaging", "scoring"},
    "report": {"bulk", "images"},
    "bench": {
        "checkpoint",
        "demo",
        "emoji",
        "errors",
        "features",
        "full_size",
        "images",
        "manifest",
        "model",
        "parameters",
        "pipeline",
        "presets",
        "safety",
        "schedulers",
        "scoring",
        "settings",
    },
    "cli": {
        "azure",
        "bench",
        "bulk",
        "checkpoint",
        "contract",
        "errors",
        "forms",
        "manifest",
        "model",
        "packaging",
        "parameters",
        "pipeline",
        "presets",
        "progress",
        "report",
        "scoring",
        "settings",
        "store",
        "tables",
    },
    "emoji": {
        "checkpoint",
        "engine",
        "errors",
        "images",
        "jobs",
        "manifest",
        "parameters",
        "pipeline",
        "safety",
        "settings",
    },
}


def rooms() -> dict[str, list[Path]]:
    """Every module or subpackage, with its files."""
    found: dict[str, list[Path]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            found.setdefault(room, []).append(file)
    return found


def imported(file: Path) -> set[str]:
    """The rooms that `file` imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("sd_mlflow.")}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_imports_point_inward(room: str) -> None:
    assert room in ALLOWED, f"{room} is a new room: say in ALLOWED what it may import"
    for file in rooms()[room]:
        assert imported(file) - {room} <= ALLOWED[room], file


def test_a_package_carries_all_that_its_code_imports(emoji_package: Path) -> None:
    code = emoji_package / "code" / "sd_mlflow"
    files = list(code.rglob("*.py"))
    carried = {file.relative_to(code).parts[0].removesuffix(".py") for file in files}
    assert {"model", "engine", "scoring"} <= carried
    for file in files:
        assert imported(file) <= carried, file


@pytest.mark.parametrize("module", ["sd_mlflow", "sd_mlflow.cli", "sd_mlflow.contract", "sd_mlflow.forms"])
def test_light_modules_load_neither_torch_nor_mlflow(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'mlflow', 'diffusers'}} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("script", ["online.py", "batch.py"])
def test_scoring_scripts_travel_alone(script: str) -> None:
    """They are uploaded without the rest: at its top, one may import nothing of the project."""
    tree = ast.parse((PACKAGE / "scoring" / script).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("sd_mlflow" in ast.unparse(node) for node in top)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.name)
def test_modules_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 260


@pytest.mark.parametrize(("given", "expected"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_torchs_threads_give_way_unless_the_environment_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    code = "import os, sd_mlflow; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == expected
