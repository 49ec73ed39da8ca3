"""The engine: one owner thread runs the pipeline for any number of callers.

Images of different requests share a UNet call, a finished image leaves at once, and a new one
joins at the next step. Whoever was served least goes first. No image leaves without a safety
verdict. The owner also loads the pipeline, and on a CPU decodes and checks: torch's CPU kernels
lose half their speed on small networks once a second thread of the process has run them. Elsewhere
decoding and checking overlap the denoising of the next images.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch

from sd_mlflow.batching import BatchSizer
from sd_mlflow.denoising import Denoiser
from sd_mlflow.errors import (
    DeadlineExceeded,
    GenerationFailed,
    LimitExceeded,
    NotReady,
    QueueFull,
    RequestError,
)
from sd_mlflow.jobs import Caller, GeneratedImage, Job
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.progress import LatentProjection, StepProgress, Watcher
from sd_mlflow.safety import Pixels, SafetyChecker
from sd_mlflow.settings import Settings

_log = logging.getLogger(__name__)
_FAILED = "the model could not make this image"
_LATE = "the request took longer than the {:g} s it may take; ask for fewer images or steps"


class Engine:
    """Makes images. `submit` and `generate` may be called by any thread; `close` ends the owner thread.

    `load` gives the pipeline in a dtype of `Settings.dtype`; what it raises, the constructor raises.
    """

    def __init__(self, load: Callable[[str], Pipeline], settings: Settings) -> None:
        self._load = load
        self._settings = settings
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        loaded: Future[Denoiser] = Future()
        self._owner = threading.Thread(target=self._run, args=(loaded,), name="sd-mlflow-engine", daemon=True)
        self._owner.start()
        self._denoiser = loaded.result()
        self._wider: Denoiser | None = None
        self.pipeline = self._denoiser.pipeline
        self._sizer = BatchSizer(settings.max_batch_size, self.pipeline.device)
        self._safety = SafetyChecker(self.pipeline.safety_checker, self.pipeline.feature_extractor)
        self._projection = LatentProjection(self.pipeline)
        self._finisher = (
            None if self.pipeline.device.type == "cpu" else ThreadPoolExecutor(1, "sd-mlflow-finisher")
        )

    def generate(self, requests: Sequence[ImageRequest], watcher: Watcher | None = None) -> list[GeneratedImage]:
        """The images of `requests`, in order. Raises as `submit` does, or what befell the first that failed."""
        futures = self.submit(requests, Caller(watcher))
        try:
            # The owner keeps the deadline between steps; a step that hangs must not hang the caller.
            return [future.result(self._settings.deadline_seconds + 30) for future in futures]
        except TimeoutError:
            raise DeadlineExceeded(_LATE.format(self._settings.deadline_seconds)) from None
        finally:
            for future in futures:
                future.cancel()

    def submit(
        self, requests: Sequence[ImageRequest], caller: Caller | None = None
    ) -> list[Future[GeneratedImage]]:
        """Queue `requests`, all or none; cancelling a future stops its image at the next step.

        `caller`: whose they are, if there are more of the same; else a caller of their own.
        Raises `LimitExceeded` (too long, too large, more than the queue holds), `InvalidParameter` (a solver
        that cannot do so many steps), `QueueFull`, or `NotReady` once closed.
        """
        room = self._settings.max_queued_images
        if len(requests) > room:
            raise LimitExceeded(f"{len(requests)} images at once, at most {room} are allowed here")
        deadline = time.monotonic() + self._settings.deadline_seconds
        for request in requests:
            self._check(request)
        caller = caller or Caller()
        jobs = [Job(request, self._denoiser, caller, deadline) for request in requests]
        with self._changed:
            if self._closed:
                raise NotReady("the model is shutting down")
            waiting = sum(not job.future.done() for job in self._jobs)
            if waiting + len(jobs) > room:
                raise QueueFull(
                    f"{waiting} images are in work, {len(jobs)} more would pass the {room} of this deployment",
                    retry_after=min(60, 1 + waiting),
                )
            # Level with whoever waits: neither ahead of those long in work, nor behind them.
            caller.served = max(caller.served, min((job.caller.served for job in self._jobs), default=0.0))
            self._jobs.extend(jobs)
            self._changed.notify()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Finish nothing more: callers that still wait get `NotReady`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._owner.join(timeout=60)
        if self._finisher:
            self._finisher.shutdown(cancel_futures=True)

    def _check(self, request: ImageRequest) -> None:
        encoder, settings, row = self.pipeline.prompt_encoder, self._settings, request.row
        encoder.check_length("text_prompt", request.prompt, settings.max_prompt_tokens, row)
        encoder.check_length("negative_prompt", request.negative_prompt, settings.max_prompt_tokens, row)
        size = self.pipeline.image_size
        pixels = (request.height or size) * (request.width or size)
        if pixels > settings.max_pixels_per_image:
            raise LimitExceeded(
                f"height times width is {pixels}, at most {settings.max_pixels_per_image} are allowed here", row
            )

    def _run(self, loaded: Future[Denoiser]) -> None:
        try:
            loaded.set_result(Denoiser(self._load(self._settings.dtype)))
        except BaseException as error:
            loaded.set_exception(error)
            return
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unfinished() or self._closed)
                if self._closed:
                    break
                batch = self._next_batch()
            self._work(batch)
            with self._changed:
                self._clear()
        for job in self._jobs:
            job.settle(NotReady("the model is shutting down"))

    def _clear(self) -> None:
        """Let go of every image that is done, left by its caller, or late."""
        now = time.monotonic()
        for job in self._jobs:
            if now > job.deadline:
                job.settle(DeadlineExceeded(_LATE.format(self._settings.deadline_seconds), job.request.row))
        self._jobs = [job for job in self._jobs if not job.future.done()]

    def _unfinished(self) -> list[Job]:
        """Images that have steps to do."""
        return [job for job in self._jobs if not job.image.finished]

    def _next_batch(self) -> list[Job]:
        """The image whose caller was served least, and those next in line that can share its UNet call."""
        line = sorted(self._unfinished(), key=lambda job: job.caller.served)
        first = line[0]
        alike = [job for job in line if job.image.size == first.image.size and job.denoiser is first.denoiser]
        return alike[: self._sizer.size(first.image.size, len(alike))]

    @torch.inference_mode()
    def _work(self, batch: list[Job]) -> None:
        """One step of each image of `batch`; an image that is done is decoded, checked and handed over."""
        for job in batch:
            height, width = job.image.size
            job.caller.served += job.image.rows * height * width
        shallow = any(job.image.shallow for job in batch)
        timing = nullcontext() if shallow else self._sizer.timing(batch[0].image.size, len(batch))
        try:
            with timing:
                batch[0].denoiser.step([job.image for job in batch])
        except Exception as error:
            self._failed(batch, error)
            return
        for job in batch:
            if job.caller.watcher:
                self._show(job, job.caller.watcher)
            if job.image.finished and self._finisher:
                self._finisher.submit(self._finish, job)
            elif job.image.finished:
                self._finish(job)

    def _failed(self, batch: list[Job], error: Exception) -> None:
        """A step went wrong: with fewer images it may not, if memory was short."""
        if isinstance(error, torch.OutOfMemoryError) and len(batch) > 1:
            self._sizer.shrink(len(batch))
            return
        _log.error("a denoising step failed", exc_info=error)
        for job in batch:
            job.settle(GenerationFailed(_FAILED, job.request.row))

    @torch.inference_mode()
    def _finish(self, job: Job) -> None:
        """Decode the image of `job` and have it checked; what goes wrong is this image's alone."""
        try:
            pixels = job.denoiser.decode(job.image)
            if pixels is not None:
                job.settle(GeneratedImage(job.request, *self._safety.apply(pixels)))
            elif job.denoiser.pipeline.dtype is torch.float16:
                job.start(self._in_wider_type())
            else:
                job.settle(GenerationFailed("the image came out as not a number", job.request.row))
        except RequestError as error:
            job.settle(error)
        except Exception:
            _log.exception("an image could not be finished")
            job.settle(GenerationFailed(_FAILED, job.request.row))
        with self._changed:
            self._changed.notify()

    def _in_wider_type(self) -> Denoiser:
        """The same pipeline in float32, for images that overflow in float16; loaded when first needed."""
        if self._wider is None:
            _log.warning("an image overflowed in float16: it is made again in float32")
            self._wider = Denoiser(self._load("float32"))
        return self._wider

    def _show(self, job: Job, watcher: Watcher) -> None:
        image = job.image

        def preview() -> Pixels:
            return self._safety.apply(self._projection(image.expected))[0]

        try:
            watcher(StepProgress(job.request, image.steps_done, image.steps, preview))
        except Exception:
            _log.exception("a watcher failed")
            job.caller.watcher = None
