"""`sd-mlflow bench`: how fast, against whom, and how sure."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from sd_mlflow.cli.app import console
from sd_mlflow.errors import InvalidParameter
from sd_mlflow.presets import PRESETS


def bench(
    preset: Annotated[
        Optional[list[str]], typer.Option(help=f"Of {', '.join(PRESETS)}; repeatable. All if not given.")
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(min=0, max=64, help="Callers at once, on sd-emoji and the real server; 0: leave that out."),
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often every stage is measured; the median counts.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two rounds, and no callers: minutes on two cores.")
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to measure.")] = "auto",
    cache: Annotated[
        Optional[Path], typer.Option(help="Where the checkpoints are kept; 8 GB. ~/.cache/sd_mlflow if not given.")
    ] = None,
    plot: Annotated[Optional[Path], typer.Option(help="Also draw the whole images' ratios into this PNG.")] = None,
    trace: Annotated[
        Optional[Path],
        typer.Option(help="Also write where a step's time goes, for chrome://tracing, into this file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Measure the full-size architecture, with random weights, against named peers in the same run.

    The peer that all ratios are of is what Azure's catalog wrapper does: diffusers in float32, as it
    is. Whole images are composed of the measured stages. Needs 20 GB of memory.

    Example: sd-mlflow bench --quick
    """
    for name in preset or []:
        if name not in PRESETS:
            raise InvalidParameter(f"--preset must be one of {', '.join(PRESETS)}; got {name!r}")
    wanted = list(dict.fromkeys(preset or PRESETS))
    with console.status("Loading") as status:
        from sd_mlflow import checkpoint, packaging, pipeline
        from sd_mlflow.bench import contenders, load, quality, report, run

        options = run.Options(
            cache or run.cache_folder(), wanted, 2 if quick else rounds, pipeline.choose_device(device)
        )
        options.cache.mkdir(parents=True, exist_ok=True)
        measured = run.measure(options, status.update)
        full_size = run.checkpoint(options.cache, "bfloat16", status.update)
        if options.device.type == "cuda":
            status.update("Counting images a second")
            measured["images_per_second"] = load.throughput(full_size, "cuda", (1, 4, 16, 64))
        if trace:
            contenders.trace(full_size, options.device, trace)
        status.update("Comparing the presets' pictures")
        measured["presets"] = quality.quality(wanted)
        if concurrency and not quick:
            status.update(f"Asking with {concurrency} callers")
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder, "model")
                packaging.package(checkpoint.find(checkpoint.SD_EMOJI), package, dtype="float16")
                measured["concurrency"] = load.concurrency(package, concurrency, 20, Path(folder, "server.log"))
    console.print(report.tables(measured))
    if plot:
        report.plot(measured, plot)
    if as_json:
        print(json.dumps(measured))
