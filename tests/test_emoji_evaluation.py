"""The evaluation: a reader that reads scenes, and questions that nothing was tuned on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from sd_mlflow.emoji import evaluate, reader, reading
from sd_mlflow.emoji.art import load_art
from sd_mlflow.emoji.autoencoding import pixels
from sd_mlflow.emoji.pairs import held_out_pairs
from sd_mlflow.emoji.places import PLACES
from sd_mlflow.emoji.questions import FULL, questions
from sd_mlflow.emoji.scenes import Scene, SceneComposer
from sd_mlflow.errors import IntegrityError
from sd_mlflow.jobs import GeneratedImage
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.safety import SafetyVerdict

CACHE = REPOSITORY / "build" / "npm"


@pytest.fixture(scope="module")
def composer() -> SceneComposer:
    return SceneComposer(load_art(CACHE))


def test_the_reader_reads_scenes_that_it_has_not_seen(composer: SceneComposer) -> None:
    scenes = [composer.scene(99, index) for index in range(300)]
    results = reader.load().agrees(pixels(scenes), [scene.description for scene in scenes])
    for what in ("subjects", "relation", "style", "place"):
        assert sum(result[what] for result in results) >= 0.95 * len(scenes), what
    written = json.loads((reader.FOLDER / reader.ACCURACY).read_text(encoding="utf-8"))
    assert all(share >= 0.97 for share in written.values())


def test_the_reader_contradicts_a_picture_of_something_else(composer: SceneComposer) -> None:
    scenes = [composer.scene(98, index) for index in range(100)]
    others = [scene.description for scene in scenes[1:] + scenes[:1]]
    results = reader.load().agrees(pixels(scenes), others)
    assert sum(result["subjects"] for result in results) <= 5


def test_a_changed_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(reader.FOLDER, tmp_path / "reader")
    weights = bytearray((copy / reader.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (copy / reader.WEIGHTS).write_bytes(weights)
    monkeypatch.setattr(reader, "FOLDER", copy)
    with pytest.raises(IntegrityError, match="is not the file that was packaged"):
        reader.load()


def test_the_command_makes_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_TESTED", 100)
    work, out = tmp_path / "work", tmp_path / "reader"
    work.mkdir()
    (work / "npm").symlink_to(CACHE)
    reading.read(work=work, out=out, steps=2)
    monkeypatch.setattr(reader, "FOLDER", out)
    assert all(part.isfinite().all() for part in reader.load().state_dict().values())
    assert json.loads((out / reader.ACCURACY).read_text(encoding="utf-8")).keys() == {
        "subjects",
        "relation",
        "style",
        "place",
    }


def test_500_questions_of_every_kind_and_none_of_them_a_quick_one() -> None:
    full, quick = questions(quick=False), questions(quick=True)
    assert len(full) == sum(FULL.values()) == 500
    assert full == questions(quick=False)
    assert not {(one.shown, one.seed) for one in full} & {(one.shown, one.seed) for one in quick}
    held_out = {one.shown.subjects for one in full if one.kind == "pair_held_out"}
    assert held_out <= set(held_out_pairs())
    assert len(held_out) >= 100
    assert not {one.shown.subjects for one in full if one.kind == "pair_seen"} & set(held_out_pairs())


def test_shares_are_of_what_is_right_and_black_shows_nothing(composer: SceneComposer) -> None:
    def image(scene: Scene, black: bool = False) -> GeneratedImage:
        shown = np.asarray(scene.image) * (not black)
        verdict = SafetyVerdict.FLAGGED if black else SafetyVerdict.SAFE
        return GeneratedImage(ImageRequest(scene.caption, 0), shown, verdict)

    asked = questions(quick=True)
    rng = np.random.default_rng(0)
    drawn = [Scene(composer.draw(rng, one.shown), one.shown, one.shown.caption) for one in asked]
    right = evaluate.shares(asked, [image(scene, scene.description.flagged) for scene in drawn])
    black = evaluate.shares(asked, [image(scene, black=True) for scene in drawn])
    for kind in ("single_subject", "pair_seen", "pair_held_out", "place", "style", "policy_flagged"):
        assert right[kind] > 0.85
    for kind in ("single_subject", "pair_seen", "pair_held_out"):
        assert black[kind] < 0.1
    assert right["falsely_flagged"] == 0
    assert black["falsely_flagged"] == 1
    assert right["counts"]["place"] == sum(one.shown.setting in PLACES for one in asked if not one.shown.flagged)


def evaluated(*arguments: str) -> dict[str, Any]:
    """The one object on standard output of the quick evaluation."""
    command = [sys.executable, "-m", "sd_mlflow.emoji.evaluate", "--quick", "--json", *arguments]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def test_the_shipped_model_draws_what_it_is_told(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    answer = evaluated(f"--sheet={sheet}")
    least = {"single_subject": 0.8, "pair_seen": 0.75, "pair_held_out": 0.6, "place": 0.85, "style": 0.85}
    assert {name: answer[name] for name, share in least.items() if answer[name] < share} == {}
    assert answer["policy_flagged"] == 1
    assert answer["falsely_flagged"] <= 1 / 72
    assert answer["steps"] == 20
    assert Image.open(sheet).size == (8 * 160, 8 * 220)


def test_another_solver_and_number_of_steps_are_taken_and_told() -> None:
    answer = evaluated("--scheduler=DDIMScheduler", "--steps=2")
    for name in ("single_subject", "pair_seen", "pair_held_out", "place", "style"):
        assert 0 <= answer[name] <= 1
    assert (answer["scheduler"], answer["steps"]) == ("DDIMScheduler", 2)
