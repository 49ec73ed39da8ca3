"""One process a contender, so that each has its own memory and threads; they are asked in turn."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import diffusers
import torch
import transformers

from sd_mlflow.bench.contenders import Stages
from sd_mlflow.bench.work import synchronize
from sd_mlflow.errors import SDMLflowError

#: Seconds that a stage may take, and loading: longer, and something hangs.
_PATIENCE = 1800


@dataclass(frozen=True)
class Measured:
    """A stage that ran: seconds, and what it made (None if that is no tensor)."""

    seconds: float
    result: torch.Tensor | None


class Worker:
    """A process that holds the stages that `make(*arguments)` gives. `ready_seconds`: how long that took."""

    def __init__(self, name: str, device: torch.device, make: Callable[..., Stages], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, device, make, arguments), daemon=True)
        self._process.start()
        theirs.close()  # Else its death would not end the connection.
        self.ready_seconds, self.stages = self._answer()

    def run(self, stage: str) -> Measured:
        """Run `stage` once. Raises `SDMLflowError` with the process's own words if it fails."""
        self._connection.send(stage)
        measured: Measured = self._answer()
        return measured

    def close(self) -> int:
        """End the process. Returns its peak memory in bytes: of the device, if that has its own."""
        self._connection.send(None)
        peak: int = self._answer()
        self._process.join(timeout=60)
        return peak

    def kill(self) -> None:
        """End the process now, if it still runs."""
        self._process.kill()

    def _answer(self) -> Any:
        if not self._connection.poll(_PATIENCE):
            self._process.kill()
            raise SDMLflowError(f"{self.name} gave no answer in {_PATIENCE} s")
        try:
            answer = self._connection.recv()
        except EOFError:
            raise SDMLflowError(f"{self.name} ended unasked: out of memory, most likely") from None
        if isinstance(answer, str):
            raise SDMLflowError(f"{self.name} failed: {answer}")
        return answer


def _serve(connection: Connection, device: torch.device, make: Callable[..., Stages], arguments: Any) -> None:
    """The life of a worker: make the stages, run those that are asked for, tell the peak memory."""
    warnings.simplefilter("ignore")
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    try:
        began = time.perf_counter()
        stages = make(*arguments)
        connection.send((time.perf_counter() - began, tuple(stages)))
        while (stage := connection.recv()) is not None:
            connection.send(_measure(stages[stage], device))
            gc.collect()
        if device.type == "cuda":
            connection.send(torch.cuda.max_memory_allocated(device))
        else:
            connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except Exception as error:
        connection.send("".join(traceback.format_exception_only(error)).strip())


@torch.inference_mode()
def _measure(stage: Callable[[], Any], device: torch.device) -> Measured:
    synchronize(device)
    began = time.perf_counter()
    result = stage()
    synchronize(device)
    seconds = time.perf_counter() - began
    return Measured(seconds, result.float().cpu() if isinstance(result, torch.Tensor) else None)
