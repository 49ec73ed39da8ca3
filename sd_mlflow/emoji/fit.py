"""A training loop that can be stopped at any moment and goes on where it was.

A batch is made in shares, one a core: small networks on several threads of one share each train
faster than on several threads of one kernel each.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from sd_mlflow.emoji.curves import draw_curve

Model = TypeVar("Model", bound=nn.Module)
#: Computes a loss: () float32, of a model, by a random generator, over so many examples.
Loss = Callable[[Model, np.random.Generator, int], torch.Tensor]
#: Shows what the moving average of the weights does: a model, and the number of steps behind it.
Preview = Callable[[nn.Module, int], None]

_SAVE_EVERY = 250
_PREVIEW_EVERY = 1000
_EMA_DECAY = 0.9995
_WARMUP_STEPS = 100
#: Shares smaller than this keep a core less busy than they cost.
_SMALLEST_SHARE = 2


def training_device() -> torch.device:
    """Where trainings run: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(rng: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise of `like`'s shape, dtype and device: torch's own generator is one for all threads."""
    return torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)).to(like)


def fit(
    name: str,
    model: Model,
    loss: Loss[Model],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    folder: Path,
    preview: Preview | None = None,
) -> None:
    """Train `model` in place on `loss` for `steps` steps of `batch`, AdamW, cosine decay; ends with the average.

    Writes `folder/NAME.pt` (weights, their moving average, optimizer) every 250 steps and
    resumes from it; as often, a line of `folder/NAME.jsonl` and the curve of all of them,
    `folder/NAME.png`. `preview` is called every 1,000 steps. Step i always draws from the
    same random generators, resumed or not. Under bf16 autocast, wherever the model is.
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    running, began = 0.0, time.perf_counter()
    with Progress(*columns) as progress, _shares(model, loss, batch) as gradients:
        task = progress.add_task(name, total=steps, completed=start)
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, steps) * learning_rate
            value = gradients(step)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            _average(average, model, step)
            running += value
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
            progress.update(task, completed=done, description=f"{name} loss {value:.4f}")
    model.load_state_dict(average.state_dict())
    model.eval()


@contextmanager
def _shares(model: Model, loss: Loss[Model], batch: int) -> Iterator[Callable[[int], float]]:
    """A function of a step that leaves the gradients of its loss in `model`, and returns the loss."""
    device, threads = next(model.parameters()).device, torch.get_num_threads()
    count = max(1, min(threads, batch // _SMALLEST_SHARE)) if device.type == "cpu" else 1
    replicas = [model, *(_replica(model) for _ in range(count - 1))]
    sizes = [batch * (number + 1) // count - batch * number // count for number in range(count)]

    def share(step: int, number: int) -> float:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(replicas[number], np.random.default_rng([step, 1 + number]), sizes[number])
        (value * (sizes[number] / batch)).backward()  # type: ignore[no-untyped-call]
        return value.item() * sizes[number] / batch

    def gradients(step: int) -> float:
        for replica in replicas:
            replica.zero_grad(set_to_none=True)
        value = sum(pool.map(share, [step] * count, range(count)))
        for replica in replicas[1:]:
            torch._foreach_add_(_gradients_of(model), _gradients_of(replica))
        return value

    try:
        if count > 1:
            torch.set_num_threads(1)
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,)) as pool:
            yield gradients
    finally:
        torch.set_num_threads(threads)


def _replica(model: Model) -> Model:
    """A model of the same weights, in the same memory, with gradients of its own."""
    replica = deepcopy(model)
    for part, own in zip(replica.parameters(), model.parameters(), strict=True):
        part.data = own.data
    return replica


def _gradients_of(model: nn.Module) -> list[torch.Tensor]:
    """The gradients that `model` has."""
    return [part.grad for part in model.parameters() if part.grad is not None]


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
