"""A batch job at work: mini-batches of files, time-outs, retries, the error threshold, one file of rows.

Azure spreads mini-batches over `instance_count` times `max_concurrency_per_instance` processes and
appends rows in no order; here one process takes them one by one, sorted by name.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stand_in.container import Image, end_group, environment
from stand_in.rest import AzureError

_WORKER = Path(__file__).with_name("batch_worker.py")
_INIT_SECONDS = 600.0


@dataclass(frozen=True)
class Settings:
    """A batch deployment's settings, an invocation's own among them, with Azure's defaults."""

    mini_batch_size: int = 10
    max_retries: int = 3
    timeout: float = 30
    error_threshold: int = -1
    append_row: bool = True
    output_file_name: str = "predictions.csv"


@dataclass
class BatchRun:
    """One job: `work` returns when it is done, and raises `AzureError` as the job fails; `cancel` ends it."""

    image: Image
    files: list[Path]
    output: Path
    log: Path
    settings: Settings
    package_environment: Mapping[str, str]
    cancelled: bool = False
    _worker: _Worker | None = field(default=None, init=False)

    def work(self) -> None:
        if not self.files:
            raise _failed("The input has no files.")
        self.output.mkdir(parents=True, exist_ok=True)
        rows, failed, size = [], 0, self.settings.mini_batch_size
        try:
            for start in range(0, len(self.files), size):
                batch = self.files[start : start + size]
                lines = self._try(batch)
                rows += lines
                # Each thing that comes back stands for one file that went well.
                failed += max(0, len(batch) - len(lines))
                if 0 <= self.settings.error_threshold < failed:
                    threshold = self.settings.error_threshold
                    raise _failed(f"{failed} items failed, more than the error threshold of {threshold} allows.")
        finally:
            self._end_worker()
        if self.settings.append_row:
            text = "".join(f"{row}\n" for row in rows)
            (self.output / self.settings.output_file_name).write_text(text, encoding="utf-8")

    def cancel(self) -> None:
        self.cancelled = True
        if self._worker:
            self._worker.kill()

    def _try(self, batch: list[Path]) -> list[str]:
        """The lines of a mini-batch, none if it failed each time that it was tried."""
        for attempt in range(self.settings.max_retries + 1):
            new = self._worker is None
            worker = self._worker = self._worker or _Worker(self)
            # Asked only now: `cancel` ends the worker that it finds, and this one may be newer.
            if self.cancelled:
                raise _failed("The job was cancelled.")
            if new:
                worker.wait_until_ready()
            answer = worker.ask([str(path) for path in batch], self.settings.timeout)
            if "lines" in answer:
                self._note(
                    f"mini-batch of {len(batch)} files, attempt {attempt + 1}: {len(answer['lines'])} results"
                )
                return list(answer["lines"])
            self._note(f"mini-batch of {len(batch)} files, attempt {attempt + 1} failed: {answer['error']}")
            if answer.get("gone"):
                self._end_worker()
        return []

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            worker.end()

    def _note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")


class _Worker:
    """The process that has the scoring script loaded."""

    def __init__(self, run: BatchRun) -> None:
        image = run.image
        variables = {"AZUREML_MODEL_DIR": str(image.model_dir), "AZUREML_BI_OUTPUT_PATH": str(run.output)}
        script = image.folder / image.entry_script
        self._answers, answers = os.pipe()
        with run.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(_WORKER), str(script), str(answers)],
                env=environment(run.package_environment, variables, image.variables),
                cwd=script.parent,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[answers],
                start_new_session=True,
            )
        os.close(answers)
        self._read = b""

    def wait_until_ready(self) -> None:
        """Return once `init` has; raises `AzureError` if it fails."""
        ready = self._answer(_INIT_SECONDS)
        if "error" in ready:
            raise _failed(f"Entry script error: init() failed. {ready['error']}")

    def ask(self, paths: list[str], timeout: float) -> dict[str, Any]:
        """What `run` answers: its lines, or an error; `gone` if the process is of no more use."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(paths).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return {"error": "the process ended", "gone": True}
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while b"\n" not in self._read:
            readable, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
            if not readable:
                return {"error": f"run() did not return within {timeout:g} s", "gone": True}
            part = os.read(self._answers, 1 << 16)
            if not part:
                return {"error": "the process ended", "gone": True}
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        end_group(self.process)

    def end(self) -> None:
        """End the process, and let go of it."""
        self.kill()
        if self.process.stdin:
            self.process.stdin.close()
        os.close(self._answers)


def _failed(message: str) -> AzureError:
    return AzureError(400, "UserError", message)
