"""The allow-list of schedulers, and one instance for each image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from sd_mlflow.errors import InvalidParameter
from sd_mlflow.parameters import SCHEDULERS


class ImageScheduler:
    """The solver of one image: it has state, so no two images share one.

    `config` is the checkpoint's scheduler configuration, `name` a class of the allow-list.
    Raises `InvalidParameter` if that solver cannot do so many or so few steps.
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], num_inference_steps: int, device: torch.device
    ) -> None:
        if name not in SCHEDULERS:
            raise InvalidParameter(f"scheduler must be one of {', '.join(SCHEDULERS)}; got {name!r}")
        self._scheduler = getattr(diffusers, name).from_config(dict(config))
        try:
            self._scheduler.set_timesteps(num_inference_steps, device=device)
        except (ValueError, IndexError, RuntimeError) as error:
            raise InvalidParameter(
                f"num_inference_steps {num_inference_steps} is not possible with {name}: {error}"
            ) from error
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        #: Timesteps in the order of the steps, (steps,); PNDM and Heun make more than asked for.
        self.timesteps: torch.Tensor = self._scheduler.timesteps
        #: Deviation of the noise to start from.
        self.init_noise_sigma = float(self._scheduler.init_noise_sigma)

    def scale_model_input(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`latents` as the UNet wants them at `timestep`; same shape and dtype."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, timestep)
        return scaled

    def signal(self, timestep: torch.Tensor) -> torch.Tensor:
        """The share of the picture in the variance of what the UNet sees at `timestep`, ()."""
        share: torch.Tensor = self._scheduler.alphas_cumprod.to(timestep.device)[timestep.round().long()]
        return share

    def step(
        self,
        noise: torch.Tensor,
        timestep: torch.Tensor,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The latents of the next step, from the predicted `noise`; same shape and dtype."""
        extra = {"generator": generator} if self._takes_generator else {}
        advanced: torch.Tensor = self._scheduler.step(noise, timestep, latents, return_dict=False, **extra)[0]
        return advanced
