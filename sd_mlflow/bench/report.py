"""What was measured, for people: tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

_TERA, _GIGA = 1e12, 1e9


def tables(measured: Mapping[str, Any]) -> RenderableType:
    """Whole images, stages, presets and callers, with what each column means."""
    roofs = ", ".join(f"{name} {rate / _TERA:.2f} TFLOP/s" for name, rate in measured["roof_flops"].items())
    machine = f"{measured['machine']['processor']}, {measured['machine']['threads']} threads; best rates: {roofs}"
    parts: list[RenderableType] = [machine, _whole(measured), _stages(measured)]
    if "presets" in measured:
        parts.append(_facts("Pictures of sd-emoji against exact", _quality(measured["presets"])))
    if "images_per_second" in measured:
        parts.append(_facts("Images a second, by callers at once", measured["images_per_second"]))
    if "concurrency" in measured:
        parts.append(_facts("Many callers, sd-emoji on Azure's inference server", measured["concurrency"]))
    return Group(*parts)


def plot(measured: Mapping[str, Any], file: Path) -> None:
    """Write a bar chart of the whole images' ratios to `file`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = measured["whole_image"]
    figure = Figure(figsize=(8, 0.6 * len(whole) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(whole)
    bars = axes.barh(names, [whole[name]["ratio_to_peer"] for name in names], color="#4c72b0")
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel(f"times as fast as {measured['peer']}, one 512x512 image")
    axes.set_title(measured["machine"]["processor"], fontsize=10, loc="left")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _whole(measured: Mapping[str, Any]) -> Table:
    table = Table(title="One 512x512 image, full size, random weights", title_justify="left")
    for column in ("", "x peer", "of roof", "UNet calls", "x peer, first", "ready", "memory"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in measured["whole_image"].items():
        table.add_row(
            name,
            f"{row['ratio_to_peer']:.2f}",
            _share(row.get("share_of_roof")),
            str(row["unet_calls"]),
            f"{row['ratio_to_peer_of_first_image']:.2f}",
            f"{row['ready_seconds']:.1f} s",
            f"{row['peak_bytes'] / _GIGA:.1f} GB",
        )
    return table


def _stages(measured: Mapping[str, Any]) -> Table:
    table = Table(
        title="By stage: times the peer (share of the roof, error against float32)", title_justify="left"
    )
    table.add_column("")
    for name in measured["stages"]:
        table.add_column(name, justify="right")
    for stage in dict.fromkeys(stage for rows in measured["stages"].values() for stage in rows):
        table.add_row(stage, *(_stage(rows.get(stage)) for rows in measured["stages"].values()))
    return table


def _stage(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "ratio_to_peer" not in row:
        return f"{row['share_of_a_step']:.0%} of a step"
    error = "" if row["relative_error"] is None else f", {row['relative_error']:.3f}"
    return f"{row['ratio_to_peer']:.2f} ({_share(row['share_of_roof'])}{error})"


def _quality(presets: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{decibels:.1f} dB PSNR" for name, decibels in presets.items()}


def _facts(title: str, facts: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    return table


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
