"""`sd-mlflow bench`, on sd-emoji in the place of the full-size checkpoint: the way is the same, and short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import converted, emoji_copy
from typer.testing import CliRunner

from sd_mlflow import checkpoint, packaging
from sd_mlflow.bench import load, work, workers
from sd_mlflow.bench.run import OURS, PEER
from sd_mlflow.bench.whole import Series, steps_of
from sd_mlflow.bench.workers import Worker
from sd_mlflow.cli import app
from sd_mlflow.errors import SDMLflowError
from sd_mlflow.presets import PRESETS, Preset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("bench")
    source = emoji_copy(cache / "source")
    for dtype in ("float32", "bfloat16"):
        converted(source, cache / f"full-size-{dtype}", dtype)
    flags = ["--quick", "--json", "--cache", str(cache), "--plot", str(cache / "plot.png")]
    flags += ["--trace", str(cache / "trace.json")]
    result = CliRunner().invoke(app, ["bench", *flags])
    assert result.exit_code == 0, result.output
    assert (cache / "plot.png").stat().st_size > 1000
    assert "aten::bmm" in (cache / "trace.json").read_text()
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_whole_image_has_its_ratio_to_the_peer(measured: dict[str, Any]) -> None:
    whole = measured["whole_image"]
    assert whole[PEER]["ratio_to_peer"] == 1.0
    assert {"diffusers bfloat16", *PRESETS} <= whole.keys()
    assert whole["exact"]["unet_calls"] == whole[PEER]["unet_calls"] == 51
    assert all(
        row[name] > 0 for row in whole.values() for name in ("ratio_to_peer", "peak_bytes", "ready_seconds")
    )


def test_every_stage_is_compared_with_float32(measured: dict[str, Any]) -> None:
    ours = measured["stages"][OURS]
    assert {work.TEXT, work.DECODE, work.CHECK, *work.STEPS.values()} == ours.keys()
    for stage in (work.TEXT, "step", work.DECODE):
        assert ours[stage]["relative_error"] < 0.05
        assert 0 < ours[stage]["share_of_roof"] < 1
    assert measured["stages"][PEER]["step"]["relative_error"] == 0


def test_the_presets_pictures_are_compared_with_exact_ones(measured: dict[str, Any]) -> None:
    assert measured["presets"].keys() == {"fast", "draft"}
    assert measured["presets"]["fast"] > measured["presets"]["draft"] > 15


def test_the_work_of_v1_4_is_what_is_published(tmp_path: Path) -> None:
    """1606 GFLOP a guided step, 2514 a decoding, counted from the architecture."""
    from sd_mlflow import full_size

    for component, (_, make) in full_size._NETWORKS.items():
        with torch.device("meta"):
            network = make()
        save = network.save_config if hasattr(network, "save_config") else network.config.save_pretrained
        save(tmp_path / component)
    flops = work.flops(tmp_path)
    assert flops["step"] == pytest.approx(1606e9, rel=0.02)
    assert flops[work.DECODE] == pytest.approx(2514e9, rel=0.02)


def test_an_image_is_composed_of_its_steps() -> None:
    kinds = steps_of(Preset("", full_step_every=2, guided_share=0.5), "DDIMScheduler", 4)
    assert kinds == ["step", "shallow step", "step unguided", "shallow unguided"]
    seconds = {work.TEXT: [1.0], work.DECODE: [2.0], work.CHECK: [3.0], "step": [10.0, 30.0, 20.0]}
    assert Series(seconds=seconds).compose(["step", "step"]) == 46.0


def fail() -> dict[str, Any]:
    raise MemoryError("no room")


def test_a_contender_that_fails_says_why() -> None:
    with pytest.raises(SDMLflowError, match="peer failed: MemoryError: no room"):
        Worker("peer", CPU, fail)


def test_a_contender_that_dies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 120)
    with pytest.raises(SDMLflowError, match="peer ended unasked"):
        Worker("peer", CPU, os._exit, 1)


def test_a_preset_that_does_not_exist_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "--preset", "fastest"])
    assert "--preset must be one of exact, fast, draft; got 'fastest'" in str(result.exception)


def test_throughput_is_counted_by_callers_at_once() -> None:
    """What a GPU's table is made of, on sd-emoji."""
    folder = checkpoint.find(checkpoint.SD_EMOJI).folder
    counted = load.throughput(folder, "cpu", (1, 3), num_inference_steps=1, scheduler="DDIMScheduler")
    assert counted.keys() == {"1", "3"}
    assert all(rate > 0 for rate in counted.values())


def test_many_callers_are_timed_on_the_real_server(tmp_path: Path) -> None:
    """What is timed is not judged here: another test's work may be on the same cores."""
    packaging.package(checkpoint.find(checkpoint.SD_EMOJI), tmp_path / "model", dtype="float16")
    timed = load.concurrency(tmp_path / "model", clients=2, steps=2, log=tmp_path / "log")
    assert timed["clients"] == 2
    assert all(value > 0 for value in timed.values())
