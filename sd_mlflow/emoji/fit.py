"""A training loop that can be stopped at any moment and goes on where it was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from sd_mlflow.emoji.curves import draw_curve

#: Computes a loss: () float32, from the random generator of one step.
Loss = Callable[[np.random.Generator], torch.Tensor]
#: Shows what the moving average of the weights does: a model, and the number of steps behind it.
Preview = Callable[[nn.Module, int], None]

_SAVE_EVERY = 250
_PREVIEW_EVERY = 1000
_EMA_DECAY = 0.9995
_WARMUP_STEPS = 100


def training_device() -> torch.device:
    """Where trainings run: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    name: str,
    model: nn.Module,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
    preview: Preview | None = None,
) -> None:
    """Train `model` in place on `loss` for `steps` steps with AdamW and cosine decay; ends with the average.

    Writes `folder/NAME.pt` (weights, their moving average, optimizer) every 250 steps and
    resumes from it; as often, a line of `folder/NAME.jsonl` and the curve of all of them,
    `folder/NAME.png`. `preview` is called every 1,000 steps. Step i always draws from the
    same random generator, resumed or not. Under bf16 autocast, wherever the model is.
    """
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    average = deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    device = next(model.parameters()).device
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    running, began = 0.0, time.perf_counter()
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=start)
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, steps) * learning_rate
            torch.manual_seed(step)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                value = loss(np.random.default_rng([step, 1]))
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            _average(average, model, step)
            running += value.item()
            done = step + 1
            if done % _SAVE_EVERY == 0 or done == steps:
                seconds = (time.perf_counter() - began) / (done - start)
                line = {"step": done, "loss": running / ((done - 1) % _SAVE_EVERY + 1), "s_per_step": seconds}
                with log.open("a", encoding="utf-8") as lines:
                    print(json.dumps(line), file=lines)
                running = 0.0
                draw_curve(log, folder / f"{name}.png")
                _save(checkpoint, model, average, optimizer, done)
            if preview and (done % _PREVIEW_EVERY == 0 or done == steps):
                preview(average, done)
            progress.update(task, completed=done, description=f"{name} loss {value.item():.4f}")
    model.load_state_dict(average.state_dict())
    model.eval()


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate: linear warm-up, then cosine decay to a hundredth."""
    return min(1.0, (step + 1) / _WARMUP_STEPS) * (0.505 + 0.495 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(_EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _save(
    checkpoint: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(checkpoint)
