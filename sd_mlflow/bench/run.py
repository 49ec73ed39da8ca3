"""The run: builds the checkpoints once, asks every contender in turn, and composes what they say."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sd_mlflow import full_size, pipeline
from sd_mlflow.bench import contenders, work
from sd_mlflow.bench.whole import Series, steps_of
from sd_mlflow.bench.workers import Worker
from sd_mlflow.manifest import DTypeName
from sd_mlflow.parameters import validate_parameters
from sd_mlflow.presets import PRESETS

#: The peer that ratios are of: what Azure's catalog wrapper does.
PEER = "catalog float32"
OURS = "sd_mlflow"

#: Told what is being done, now and then.
Say = Callable[[str], None]


def cache_folder() -> Path:
    """Where the checkpoints of the bench are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sd_mlflow"


@dataclass(frozen=True)
class Options:
    """What is measured. `rounds`: how often every contender is asked in turn, one more to warm up."""

    cache: Path
    presets: Sequence[str]
    rounds: int
    device: torch.device


def measure(options: Options, say: Say) -> dict[str, Any]:
    """Roofs, stages and whole images of every contender, as one JSON-able object."""
    exact = checkpoint(options.cache, "float32", say)
    narrow = checkpoint(options.cache, "bfloat16", say)
    say("Measuring what this machine can do at best")
    roofs = {name: work.roof(getattr(torch, name), options.device) for name in ("float32", "bfloat16")}
    series, dtypes = _ask(options, exact, narrow, say)
    flops = work.flops(exact)
    return {
        "machine": {"processor": _processor(options.device), "threads": torch.get_num_threads()},
        "peer": PEER,
        "roof_flops": roofs,
        "image_flops": _image_flops(flops),
        "stages": {name: _stages(one, series[PEER], flops, roofs[dtypes[name]]) for name, one in series.items()},
        "whole_image": _whole(options.presets, series, _image_flops(flops), {n: roofs[dtypes[n]] for n in series}),
    }


def checkpoint(cache: Path, dtype: DTypeName, say: Say) -> Path:
    """The full-size checkpoint in `dtype`, built unless it is there."""
    folder = cache / f"full-size-{dtype}"
    if not folder.exists():
        say(f"Building the full-size checkpoint with random weights in {folder}")
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        full_size.build(partial, dtype=dtype)
        partial.rename(folder)
    return folder


def _ask(options: Options, exact: Path, narrow: Path, say: Say) -> tuple[dict[str, Series], dict[str, str]]:
    """What every contender's stages take, asked in turn, and the dtype of each."""
    device = options.device
    contending: dict[str, tuple[str, Callable[..., contenders.Stages], tuple[Any, ...]]] = {
        PEER: ("float32", contenders.diffusers_as_it_is, (exact, device, torch.float32)),
        "diffusers bfloat16": ("bfloat16", contenders.diffusers_as_it_is, (narrow, device, torch.bfloat16)),
    }
    if device.type == "cpu" and find_spec("openvino"):
        contending["openvino bfloat16"] = ("bfloat16", contenders.openvino, (exact, options.cache))
    ours = str(pipeline.load_dtype("bfloat16", device)).removeprefix("torch.")
    contending[OURS] = (ours, contenders.ours, (narrow, device))
    series = {name: Series() for name in contending}
    with ExitStack() as ends:
        workers: list[Worker] = []
        # Ours first, while the files that were just built are still in the page cache.
        for name, (_, make, arguments) in reversed(contending.items()):
            say(f"Loading {name}")
            worker = Worker(name, device, make, *arguments)
            ends.callback(worker.kill)
            workers.insert(0, worker)
            series[name].ready_seconds = worker.ready_seconds
        for turn in range(options.rounds + 1):
            for worker in workers:
                say(f"Round {turn} of {options.rounds}: {worker.name}" if turn else f"Warming up {worker.name}")
                for stage in worker.stages:
                    measured = worker.run(stage)
                    if turn:
                        series[worker.name].seconds.setdefault(stage, []).append(measured.seconds)
                    elif measured.result is not None:
                        series[worker.name].results[stage] = measured.result
        for worker in workers:
            series[worker.name].peak_bytes = worker.close()
    return series, {name: dtype for name, (dtype, _, _) in contending.items()}


def _stages(one: Series, peer: Series, flops: dict[str, int], roof: float) -> dict[str, Any]:
    """Of a contender: ratio to the peer, share of the roof, error against float32, of every stage."""
    table: dict[str, Any] = {}
    for stage in one.seconds:
        table[stage] = {"relative_error": one.difference(peer, stage)}
        if stage in peer.seconds:
            table[stage]["ratio_to_peer"] = peer.median(stage) / one.median(stage)
            table[stage]["share_of_roof"] = flops[stage] / one.median(stage) / roof
        else:
            table[stage]["share_of_a_step"] = one.median(stage) / one.median("step")
    return table


def _whole(
    presets: Sequence[str], series: dict[str, Series], flops: int, roofs: dict[str, float]
) -> dict[str, Any]:
    """Whole images at the parameters' defaults: the peers' and, by preset, ours."""
    peer, ours = series[PEER], series[OURS]
    as_the_peer = _steps("exact")
    composed = {name: (one.over(peer if name == PEER else ours), as_the_peer) for name, one in series.items()}
    del composed[OURS]
    composed |= {preset: (ours, _steps(preset)) for preset in presets}
    best = peer.compose(as_the_peer)
    table = {}
    for name, (one, steps) in composed.items():
        seconds = one.compose(steps)
        table[name] = {
            "ratio_to_peer": best / seconds,
            "unet_calls": len(steps),
            "ready_seconds": one.ready_seconds,
            "ratio_to_peer_of_first_image": (peer.ready_seconds + best) / (one.ready_seconds + seconds),
            "peak_bytes": one.peak_bytes,
        }
        if steps == as_the_peer:
            table[name]["share_of_roof"] = flops / seconds / roofs[name if name in roofs else OURS]
    return table


def _steps(preset: str) -> list[str]:
    """The kinds of step of an image that `preset` makes with v1-4's scheduler."""
    values = validate_parameters({"preset": preset})
    return steps_of(PRESETS[preset], values["scheduler"], values["num_inference_steps"])


def _image_flops(flops: dict[str, int]) -> int:
    return flops[work.TEXT] + len(_steps("exact")) * flops["step"] + flops[work.DECODE] + flops[work.CHECK]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return models[0].partition(":")[2].strip() if models else platform.processor()
