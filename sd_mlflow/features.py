"""Deep features of a UNet, kept from one step for the next (DeepCache, arXiv:2312.00858).

What the deep layers see changes little between neighbouring steps. A step that takes them from
the step before runs only the first convolution and the last layer of the UNet.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel


def whole(
    unet: UNet2DConditionModel, sample: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted noise, (n, 4, h, w), and the features for `shallow`, (n, channels, h, w).

    `sample` is (n, 4, h, w), `timesteps` (n,), `hidden` (n, tokens, width).
    """
    seen: list[torch.Tensor] = []
    hook = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        noise: torch.Tensor = unet(sample, timesteps, encoder_hidden_states=hidden).sample
    finally:
        hook.remove()
    # The last layer sees the features and, after them, what the first convolution gave.
    return noise, seen[0][:, : -unet.config.block_out_channels[0]]


def shallow(
    unet: UNet2DConditionModel,
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    hidden: torch.Tensor,
    features: torch.Tensor,
) -> torch.Tensor:
    """The predicted noise, (n, 4, h, w), with the deep `features` of another step."""
    last = unet.up_blocks[-1]
    time = unet.time_embedding(unet.time_proj(timesteps).to(sample.dtype))
    mixed = last.resnets[-1](torch.cat([features, unet.conv_in(sample)], dim=1), time)
    if hasattr(last, "attentions"):
        mixed = last.attentions[-1](mixed, encoder_hidden_states=hidden, return_dict=False)[0]
    noise: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(mixed)))
    return noise
