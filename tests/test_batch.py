"""Azure's batch contract, driven as its documentation says: `init()`, then `run(mini_batch)` again and again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from PIL import Image

#: A driver in its own process, which can be killed: a line of JSON for each prediction.
DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import batch
batch.init()
for mini_batch in sys.argv[2:]:
    print(*batch.run(mini_batch.split(",")), sep="\\n", flush=True)
"""


def environment(package: Path, out: Path) -> dict[str, str]:
    parameters = {"num_inference_steps": 2, "scheduler": "DDIM"}
    return os.environ | {
        "AZUREML_MODEL_DIR": str(package),
        "AZUREML_BI_OUTPUT_PATH": str(out),
        "SD_MLFLOW_PARAMETERS": json.dumps(parameters),
    }


def command(*mini_batches: list[Path]) -> list[str]:
    batches = [",".join(map(str, files)) for files in mini_batches]
    return [sys.executable, "-c", DRIVER, str(REPOSITORY / "sd_mlflow" / "scoring"), *batches]


def run(package: Path, out: Path, *mini_batches: list[Path]) -> list[dict[str, Any]]:
    """The predictions of all `mini_batches`."""
    ran = subprocess.run(
        command(*mini_batches), env=environment(package, out), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def files(out: Path) -> dict[str, str]:
    """Every file below `out`, with its hash."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    """Three files of 40 prompts in all, none of them in the last."""
    paths = [tmp_path / f"{number}.csv" for number in range(3)]
    for number, path in enumerate(paths):
        rows = [f"a cat number {number * 20 + row}" for row in range(20 if number < 2 else 0)]
        path.write_text("\n".join(["text_prompt", *rows]) + "\n")
    return paths


def test_one_prediction_a_prompt_and_every_image_whole(
    emoji_package: Path, tmp_path: Path, prompts: list[Path]
) -> None:
    out = tmp_path / "out"
    *predictions, empty = run(emoji_package, out, prompts[:1], prompts[1:])
    assert (empty["file"], empty["row"], empty["error"]) == ("2.csv", -1, "2.csv holds no prompts")
    assert [(p["file"], p["row"]) for p in predictions] == [
        (f"{number}.csv", row) for number in range(2) for row in range(20)
    ]
    named = [image for p in predictions for image in p["images"]]
    assert sorted(named) == sorted(files(out))
    assert len(set(named)) == 40
    for prediction in predictions:
        assert prediction["error"] is None
        assert prediction["nsfw_content_detected"] in (["True"], ["False"])
        Image.open(out / prediction["images"][0]).load()


def test_a_run_that_was_killed_goes_on_to_the_same_names_and_bytes(
    emoji_package: Path, tmp_path: Path, prompts: list[Path]
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = run(emoji_package, whole, prompts)
    with subprocess.Popen(
        command(prompts), env=environment(emoji_package, pieces), stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(pieces.rglob("*.png"))) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in pieces.rglob("*.png")}
    assert 0 < len(done) < 40
    assert run(emoji_package, pieces, prompts) == expected
    images = {path: digest for path, digest in files(pieces).items() if path.endswith(".png")}
    assert images == files(whole)
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())


def test_hostile_input_costs_its_own_row_only(emoji_package: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "out", tmp_path / "a.jsonl"
    rows: list[Any] = [
        {"text_prompt": "a cat"},
        {"text_prompt": "   "},
        {"text_prompt": "a cat"},
        {"text_prompt": "x" * 10_000},
        {"text_prompt": "../../a dog مرحبا 🐎", "file_name": "../../evil"},
        {"prompt": "../../a dog مرحبا 🐎", "seed": 7, "num_images_per_prompt": 2},
        {"text_prompt": "a cow", "num_inference_steps": 900},
        {"text_prompt": "a cow", "orient": "records"},
        {"seed": 3},
    ]
    good.write_text("\n".join(["{not json", *map(json.dumps, rows)]))
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    predictions = run(emoji_package, out, [good, broken])
    errors = [(p["row"], p["error"]) for p in predictions if p["error"]]
    expected = {
        0: "not JSON",
        2: "must not be blank",
        4: "characters of text_prompt: 10000",
        5: "unknown parameter 'file_name'",
        7: "num_inference_steps must be between 1 and 150, got 900",
        8: "orient is a parameter of a request",
        9: "the column text_prompt is missing",
        -1: "b.parquet cannot be read",
    }
    assert [row for row, _ in errors] == list(expected)
    assert all(expected[row] in error for row, error in errors)
    twice = [p for p in predictions if p["text_prompt"] == "a cat"]
    assert twice[0]["images"] == twice[1]["images"]
    assert len(next(p for p in predictions if p["row"] == 6)["images"]) == 2
    assert len(files(out)) == 3
    assert not list(tmp_path.parent.rglob("evil*"))


def test_a_full_disk_stops_the_run_with_nothing_half_written(emoji_package: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.csv"
    out.mkdir()
    prompts.write_text("text_prompt\n" + "".join(f"a cat {n}\n" for n in range(30)))
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.fail("this test needs the right to mount a small tmpfs")
    try:
        ran = subprocess.run(
            command([prompts]), env=environment(emoji_package, out), capture_output=True, text=True
        )
        assert ran.returncode != 0
        assert "No space left on device" in ran.stderr
        left = list(out.rglob("*.*"))
        assert left
        assert all(path.suffix == ".png" for path in left)
        for path in left:
            Image.open(path).load()
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_a_folder_without_a_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(tmp_path, tmp_path / "out", [])
    assert f"{tmp_path} holds no MLmodel: it must be a package" in refused.value.stderr
