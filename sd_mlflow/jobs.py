"""An image in line: whose it is, until when it is wanted, and how its caller hears of it."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from sd_mlflow.denoising import Denoiser, Denoising
from sd_mlflow.errors import RequestError
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.progress import Watcher
from sd_mlflow.safety import Pixels, SafetyVerdict


@dataclass(frozen=True)
class GeneratedImage:
    """An image that has its verdict: (height, width, 3) uint8, black if flagged."""

    request: ImageRequest
    pixels: Pixels
    verdict: SafetyVerdict


@dataclass
class Caller:
    """Whose images are in work: callers take turns, the images of one caller are made in their order."""

    watcher: Watcher | None = None
    #: How much was done for it, in UNet rows times latents.
    served: float = 0.0


class Job:
    """An image in line or in work."""

    def __init__(self, request: ImageRequest, denoiser: Denoiser, caller: Caller, deadline: float) -> None:
        self.request = request
        self.caller = caller
        self.deadline = deadline
        self.future: Future[GeneratedImage] = Future()
        self.start(denoiser)

    def start(self, denoiser: Denoiser) -> None:
        """Begin, or begin again, with `denoiser`."""
        self.denoiser = denoiser
        self.image = Denoising(self.request, denoiser.pipeline)

    def settle(self, outcome: GeneratedImage | RequestError) -> None:
        """Give the caller the outcome, unless the caller has left."""
        try:
            if isinstance(outcome, GeneratedImage):
                self.future.set_result(outcome)
            else:
                self.future.set_exception(outcome)
        except InvalidStateError:
            pass
