"""`sd-mlflow batch` as a person meets it: stopped, resumed, refused, and looked at."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

FAST = ["--num-inference-steps", "2", "--scheduler", "DDIM"]


def command(source: Path, out: Path, package: Path) -> list[str]:
    head = [sys.executable, "-m", "sd_mlflow.cli", "batch", str(source), "--out", str(out)]
    return [*head, "--model", str(package), *FAST]


def images(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "images").rglob("*.png")}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A folder of two files: 60 prompts, one of them blank."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    lines = [f"a dog number {n}" for n in range(30)]
    (folder / "a.csv").write_text("text_prompt\n" + "\n".join([*lines[:-1], '" "']) + "\n")
    (folder / "b.jsonl").write_text("".join(json.dumps({"prompt": f"a cat {n}"}) + "\n" for n in range(30)))
    return folder


def test_every_prompt_once_with_sheets_to_look_at(emoji_package: Path, tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out"
    ran = subprocess.run(command(prompts, out, emoji_package), capture_output=True, text=True, check=True)
    assert re.search(r"Done: 59 done, \d+ flagged, 1 failed, \d+ images a minute", ran.stderr)
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(p["file"], p["row"]) for p in predictions] == [
        (file, row) for file in ("a.csv", "b.jsonl") for row in range(30)
    ]
    assert len({name for p in predictions for name in p["images"]}) == len(images(out)) == 59
    assert Image.open(out / "contact-sheet.png").size == (20 * 128, 3 * 128)
    page = (out / "contact-sheet.html").read_text()
    assert page.count("<figure") == 59
    assert "a cat 29" in page
    assert "http" not in page  # it needs nothing from elsewhere


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on(emoji_package: Path, tmp_path: Path, prompts: Path, ending: signal.Signals) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    subprocess.run(command(prompts, whole, emoji_package), capture_output=True, check=True)
    with subprocess.Popen(command(prompts, pieces, emoji_package), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while len(list(pieces.rglob("*.png"))) < 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
    assert not (pieces / "predictions.jsonl").exists()
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert b"run the same command again" in said
        assert b"Traceback" not in said
    subprocess.run(command(prompts, pieces, emoji_package), capture_output=True, check=True)
    assert images(pieces) == images(whole)
    assert (pieces / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert not list(pieces.rglob("*.partial"))


def test_a_full_disk_is_one_clear_sentence(emoji_package: Path, tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(out)], check=True)
    try:
        ran = subprocess.run(command(prompts, out, emoji_package), capture_output=True, text=True)
        assert ran.returncode == 1
        assert "No space left on device" in ran.stderr
        assert "run the same command again" in ran.stderr
        assert "Traceback" not in ran.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        subprocess.run(command(prompts, out, emoji_package), capture_output=True, check=True)
        assert len(images(out)) == 59
        assert not list(out.rglob("*.partial"))
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_two_runs_do_not_share_a_folder(emoji_package: Path, tmp_path: Path, prompts: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = subprocess.run(command(prompts, out, emoji_package), capture_output=True, text=True)
    assert ran.returncode == 1
    assert "another run is at work" in ran.stderr


def test_a_folder_without_prompts_is_refused(emoji_package: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = subprocess.run(
        command(tmp_path / "empty", tmp_path / "out", emoji_package), capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "holds no file whose name ends in .csv, .jsonl, .parquet" in ran.stderr
