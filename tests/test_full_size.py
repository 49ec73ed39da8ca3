"""v1-4's architecture at full size, with random weights: packaged in bounded memory and disk, and it draws."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from parity import PROMPTS, SCHEDULERS, Pair, pair_of
from safetensors import safe_open

from sd_mlflow import full_size

# Its own process: what it holds is measured, and given back.
PACKAGE_AND_PREDICT = """
import json, re, sys
from pathlib import Path
import mlflow.pyfunc
from sd_mlflow import checkpoint, packaging, tensors

def memory(which):  # of this process alone; ru_maxrss also remembers the process it was forked from
    return int(re.search(which + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def on_disk(_=0):
    global disk
    disk = max(disk, sum(file.stat().st_size for file in root.rglob("*") if file.is_file()))

source, root, disk = Path(sys.argv[1]), Path(sys.argv[2]), 0
before = memory("VmRSS")
packaging.package(checkpoint.find(str(source)), root / "package", dtype="bfloat16", advance=on_disk)
peak = memory("VmHWM") - before
on_disk()
model = mlflow.pyfunc.load_model(str(root / "package"))
(record,) = model.predict(["a horse"], params={
    "num_inference_steps": 1, "height": 64, "width": 64, "guidance_scale": 1.0}).to_dict("records")
print(json.dumps({"peak": peak, "disk": disk, "flags": record["nsfw_content_detected"]}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The source, 5.5 GB in float32; removed at the end."""
    folder = tmp_path_factory.mktemp("full-size") / "checkpoint"
    full_size.build(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def packaged(checkpoint: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The package, and what was measured while it was made."""
    root = checkpoint.parent / "out"
    (root / "tmp").mkdir(parents=True)
    ran = subprocess.run(
        [sys.executable, "-c", PACKAGE_AND_PREDICT, checkpoint, root],
        env={**os.environ, "TMPDIR": str(root / "tmp")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    yield root / "package", figures
    shutil.rmtree(root)


def test_packaging_holds_far_less_than_the_model(packaged: tuple[Path, dict[str, Any]]) -> None:
    _, figures = packaged
    # The widest tensor is 152 MB; the UNet alone would be 3.4 GB.
    assert figures["peak"] < 1.5e9


def test_there_is_never_more_than_one_copy_of_the_weights(packaged: tuple[Path, dict[str, Any]]) -> None:
    package, figures = packaged
    weights = sum(file.stat().st_size for file in package.rglob("*.safetensors"))
    assert weights > 2.7e9
    assert figures["disk"] < weights + 20e6


def test_every_tensor_keeps_its_name_and_shape(checkpoint: Path, packaged: tuple[Path, dict[str, Any]]) -> None:
    package, _ = packaged
    for source in checkpoint.rglob("*.safetensors"):
        written = package / "artifacts" / "checkpoint" / source.relative_to(checkpoint)
        assert shapes(written, "BF16") == shapes(source, "F32")


def test_it_answers(packaged: tuple[Path, dict[str, Any]]) -> None:
    _, figures = packaged
    assert figures["flags"] == ["False"]


@pytest.fixture(scope="module")
def in_float32(checkpoint: Path) -> Iterator[Pair]:
    with pair_of(checkpoint) as pair:
        yield pair


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_draws_what_diffusers_draws(in_float32: Pair, scheduler: str) -> None:
    # A quarter of v1-4's picture: the same code, in a quarter of the time.
    assert in_float32.largest_difference(scheduler, PROMPTS[:1], steps=2, size=256, scale=7.5) <= 1


def shapes(file: Path, dtype: str) -> dict[str, list[int]]:
    """The tensors of `file`, all of them in `dtype`."""
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, no dict
        assert {stored.get_dtype() for stored in slices.values()} == {dtype}
        return {name: stored.get_shape() for name, stored in slices.items()}
