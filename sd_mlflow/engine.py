"""The engine: one owner thread runs the pipeline for any number of callers.

The unit of work is one denoising step of one image. Every image has its own scheduler, noise
and guidance, so images of different requests share a UNet call, a finished image leaves at
once, and the next in line joins at the next step. No image leaves without a safety verdict.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

import torch

from sd_mlflow.errors import (
    DeadlineExceeded,
    GenerationFailed,
    LimitExceeded,
    NotReady,
    QueueFull,
    RequestError,
)
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.safety import Pixels, SafetyChecker, SafetyVerdict
from sd_mlflow.schedulers import ImageScheduler
from sd_mlflow.settings import Settings

_log = logging.getLogger(__name__)
_FAILED = "the model could not make this image"
_LATE = "the request took longer than the {:g} s it may take; ask for fewer images or steps"


@dataclass(frozen=True)
class GeneratedImage:
    """An image that has its verdict: (height, width, 3) uint8, black if flagged."""

    request: ImageRequest
    pixels: Pixels
    verdict: SafetyVerdict


class _Job:
    """An image in work: its latents, (1, 4, height/8, width/8) float32, and all that moves them on."""

    #: Of the prompt, as `PromptEncoder.encode` gives them; there from the first step on.
    embeddings: torch.Tensor

    def __init__(self, request: ImageRequest, pipeline: Pipeline, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.future: Future[GeneratedImage] = Future()
        self.scheduler = ImageScheduler(
            request.scheduler or pipeline.scheduler_name,
            pipeline.scheduler_config,
            request.num_inference_steps,
            pipeline.device,
        )
        self.steps_done = 0
        # A CPU generator draws the same noise on every device, and diffusers draws this shape.
        self.generator = torch.Generator("cpu").manual_seed(request.seed)
        size = [
            (edge or pipeline.image_size) // pipeline.vae_scale_factor for edge in (request.height, request.width)
        ]
        noise = torch.randn(1, pipeline.unet.config.in_channels, *size, generator=self.generator)
        self.latents = noise.to(pipeline.device) * self.scheduler.init_noise_sigma

    @property
    def timestep(self) -> torch.Tensor:
        return self.scheduler.timesteps[self.steps_done]

    @property
    def finished(self) -> bool:
        return self.steps_done == len(self.scheduler.timesteps)

    def settle(self, outcome: GeneratedImage | RequestError) -> None:
        """Give the caller the outcome, unless the caller has left."""
        try:
            if isinstance(outcome, GeneratedImage):
                self.future.set_result(outcome)
            else:
                self.future.set_exception(outcome)
        except InvalidStateError:
            pass


class Engine:
    """Makes images. `submit` and `generate` may be called by any thread; `close` ends the owner thread."""

    def __init__(self, pipeline: Pipeline, safety: SafetyChecker, settings: Settings) -> None:
        self._pipeline = pipeline
        self._safety = safety
        self._settings = settings
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._owner = threading.Thread(target=self._run, name="sd-mlflow-engine", daemon=True)
        self._owner.start()

    def generate(self, requests: Sequence[ImageRequest]) -> list[GeneratedImage]:
        """The images of `requests`, in order. Raises as `submit` does, or what befell the first that failed."""
        futures = self.submit(requests)
        try:
            # The owner keeps the deadline between steps; a step that hangs must not hang the caller.
            return [future.result(self._settings.deadline_seconds + 30) for future in futures]
        except TimeoutError:
            raise DeadlineExceeded(_LATE.format(self._settings.deadline_seconds)) from None
        finally:
            for future in futures:
                future.cancel()

    def submit(self, requests: Sequence[ImageRequest]) -> list[Future[GeneratedImage]]:
        """Queue `requests`, all or none; cancelling a future stops its image at the next step.

        Raises `LimitExceeded` (too long, too large, more than the queue holds), `InvalidParameter` (a solver
        that cannot do so many steps), `QueueFull`, or `NotReady` once closed.
        """
        room = self._settings.max_queued_images
        if len(requests) > room:
            raise LimitExceeded(f"{len(requests)} images at once, at most {room} are allowed here")
        deadline = time.monotonic() + self._settings.deadline_seconds
        for request in requests:
            self._check(request)
        jobs = [_Job(request, self._pipeline, deadline) for request in requests]
        with self._changed:
            if self._closed:
                raise NotReady("the model is shutting down")
            waiting = sum(not job.future.done() for job in self._jobs)
            if waiting + len(jobs) > room:
                raise QueueFull(
                    f"{waiting} images are in work, {len(jobs)} more would pass the {room} of this deployment",
                    retry_after=min(60, 1 + waiting),
                )
            self._jobs.extend(jobs)
            self._changed.notify()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Finish nothing more: callers that still wait get `NotReady`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._owner.join(timeout=60)

    def _check(self, request: ImageRequest) -> None:
        encoder, settings, row = self._pipeline.prompt_encoder, self._settings, request.row
        encoder.check_length("text_prompt", request.prompt, settings.max_prompt_tokens, row)
        encoder.check_length("negative_prompt", request.negative_prompt, settings.max_prompt_tokens, row)
        size = self._pipeline.image_size
        pixels = (request.height or size) * (request.width or size)
        if pixels > settings.max_pixels_per_image:
            raise LimitExceeded(
                f"height times width is {pixels}, at most {settings.max_pixels_per_image} are allowed here", row
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    break
                batch = self._next_batch()
            try:
                self._work(batch)
            except Exception:
                _log.exception("a denoising step failed")
                for job in batch:
                    job.settle(GenerationFailed(_FAILED, job.request.row))
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
        self._jobs = deque(job for job in self._jobs if not job.future.done())

    def _next_batch(self) -> list[_Job]:
        """The first image in line and those behind it that can share its UNet call."""
        first = self._jobs[0]
        alike = [job for job in self._jobs if job.latents.shape == first.latents.shape]
        return alike[: self._settings.max_batch_size]

    @torch.inference_mode()
    def _work(self, batch: list[_Job]) -> None:
        """One step of each image of `batch`; an image that is done is decoded, checked and handed over."""
        for job in batch:
            if job.steps_done == 0:
                negative = job.request.negative_prompt if job.request.guided else None
                job.embeddings = self._pipeline.prompt_encoder.encode(job.request.prompt, negative)
        for length in {job.embeddings.shape[1] for job in batch}:
            self._step([job for job in batch if job.embeddings.shape[1] == length])
        for job in batch:
            if job.finished:
                job.settle(self._finish(job))

    def _step(self, batch: list[_Job]) -> None:
        """One UNet call, twice the image where it is guided (arXiv:2207.12598), and one solver step of each."""
        inputs, timesteps, hidden = [], [], []
        for job in batch:
            scaled = job.scheduler.scale_model_input(job.latents, job.timestep)
            inputs += [scaled] * len(job.embeddings)
            timesteps += [job.timestep.float()] * len(job.embeddings)
            hidden.append(job.embeddings)
        predicted = self._pipeline.unet(
            torch.cat(inputs).to(self._pipeline.dtype),
            torch.stack(timesteps),
            encoder_hidden_states=torch.cat(hidden),
        ).sample.float()
        for job, noise in zip(batch, predicted.split([len(h) for h in hidden]), strict=True):
            if job.request.guided:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + job.request.guidance_scale * (conditional - unconditional)
            job.latents = job.scheduler.step(noise, job.timestep, job.latents, job.generator)
            job.steps_done += 1

    def _finish(self, job: _Job) -> GeneratedImage | RequestError:
        """Decode the latents of `job` and have the image checked; what goes wrong is this image's alone."""
        try:
            vae = self._pipeline.vae
            latents = (job.latents / vae.config.scaling_factor).to(self._pipeline.dtype)
            decoded = vae.decode(latents).sample[0].float()
            if not decoded.isfinite().all():
                return GenerationFailed("the image came out as not a number", job.request.row)
            shares = (decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
            pixels = (shares * 255).round().to(torch.uint8).cpu().numpy()
            return GeneratedImage(job.request, *self._safety.apply(pixels))
        except RequestError as error:
            return error
        except Exception:
            _log.exception("an image could not be finished")
            return GenerationFailed(_FAILED, job.request.row)
