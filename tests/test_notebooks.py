"""The notebooks, stored without outputs, and executed to their last cell: what they show, and what they leave."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import stand_in
from conftest import REPOSITORY
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

#: Notebook -> the pictures that it shows.
PICTURES = {"package-and-serve": 6, "text-to-image-online-endpoint": 3, "text-to-image-batch-endpoint": 2}
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

Execute = Callable[[str], NotebookNode]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stand_in.Azure]:
    with stand_in.running(tmp_path_factory.mktemp("azure")) as running:
        yield running


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a fresh clone, so that what the notebooks write stays out of this one."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "notebooks").mkdir()
    for name in ("endpoints", "registry", "sd_mlflow"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.fixture(scope="module")
def execute(azure: stand_in.Azure, clone: Path) -> Execute:
    """Executes a notebook, once, as `jupyter` does in the folder `notebooks/`."""
    done: dict[str, NotebookNode] = {}
    workspace = {"AZURE_RESOURCE_GROUP": azure.resource_group, "AZUREML_WORKSPACE": azure.workspace}
    own = {"PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(clone / "ipython")}

    def run(name: str) -> NotebookNode:
        if name not in done:
            notebook = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
            resources = {"metadata": {"path": str(clone / "notebooks")}}
            NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources).execute(
                env=os.environ | azure.environment | workspace | own
            )
            done[name] = notebook
        return done[name]

    return run


def pictures(notebook: NotebookNode) -> list[Image.Image]:
    """The pictures that the cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    encoded = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(image))) for image in encoded]


def test_every_notebook_is_here() -> None:
    assert {file.stem for file in NOTEBOOKS} == set(PICTURES)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_stored_without_outputs_and_anybodys_paths(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    assert not re.search(r"/(home|root|tmp|mnt|Users|work)/|[A-Z]:\\", file.read_text(encoding="utf-8"))
    assert file.stat().st_size < 20_000


@pytest.mark.parametrize("name", PICTURES)
def test_notebooks_run_to_the_last_cell_and_show_their_pictures(execute: Execute, name: str) -> None:
    executed = execute(name)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    shown = pictures(executed)
    assert len(shown) == PICTURES[name]
    # Something is drawn: neither black nor of one colour.
    assert all(max(high - low for low, high in picture.convert("RGB").getextrema()) > 50 for picture in shown)


@pytest.mark.parametrize("name", PICTURES)
def test_no_output_of_a_notebook_holds_a_secret(execute: Execute, azure: stand_in.Azure, name: str) -> None:
    executed = nbformat.writes(execute(name))
    assert azure.secrets
    assert not [secret for secret in azure.secrets if secret in executed]


@pytest.mark.parametrize("name", ["text-to-image-online-endpoint", "text-to-image-batch-endpoint"])
def test_the_notebooks_of_azure_leave_no_endpoint(execute: Execute, azure: stand_in.Azure, name: str) -> None:
    execute(name)
    assert [resource for resource in azure.resources() if "ndpoints/" in resource] == []
    assert azure.problems == []


def test_the_batch_notebook_leaves_a_picture_for_every_row(execute: Execute, clone: Path) -> None:
    execute("text-to-image-batch-endpoint")
    drawn = list((clone / "build" / "notebooks").glob("prompts-*/**/images/**/*.png"))
    assert len(drawn) == 6
