"""How the networks are run on a device: what is done to them once, after loading.

- `packed`: a CPU that multiplies bfloat16 itself (AVX512-BF16, AMX). The weights of convolutions are
  laid out once as oneDNN wants them, not at every call, and attention runs as matrix products.
- `compiled`: torch.compile, block by block. Takes a minute before the first image; for GPUs.
- `eager`: as diffusers runs them.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from enum import StrEnum

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional as F


class Execution(StrEnum):
    """The ways to run the networks."""

    EAGER = "eager"
    PACKED = "packed"
    COMPILED = "compiled"


#: Scores, in elements, that attention computes at once: 4 MiB of bfloat16 stay in a CPU's last cache.
_SCORES_AT_ONCE = 2 * 1024 * 1024
#: Scores up to this need no maximum subtracted: no sum of such exponentials overflows, and none vanishes.
_SAFE_EXPONENT = 60.0


def computes_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them float32 is faster."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def best(device: torch.device, dtype: torch.dtype) -> Execution:
    """The execution that is fastest without a wait before the first image."""
    packs = device.type == "cpu" and dtype is torch.bfloat16 and computes_bfloat16()
    return Execution.PACKED if packs else Execution.EAGER


def prepare(model: ModelMixin, execution: Execution, mapped: bool = False) -> None:
    """Make `model`, a UNet or an autoencoder in its place and dtype, run by `execution`. In place.

    `mapped`: its weights are the pages of their file, and nobody else's.
    """
    if execution is Execution.PACKED:
        model.set_attn_processor(MatrixAttention())
        _pack_convolutions(model, mapped)
        return
    model.to(memory_format=torch.channels_last)
    if execution is Execution.COMPILED and model._repeated_blocks:
        model.compile_repeated_blocks(dynamic=True)


class MatrixAttention:
    """An attention processor of diffusers: matrix products and a softmax, so many scores at a time.

    Two to three times as fast as torch's fused attention on a CPU, whose kernel reaches a sixth of
    the speed of a matrix product there. Takes no mask: Stable Diffusion v1 has none.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> torch.Tensor:
        """Self-attention, or cross-attention to `encoder_hidden_states` (n, tokens, width).

        `hidden_states` is (n, tokens, channels) or (n, channels, height, width); so is the result.
        """
        shape, residual = hidden_states.shape, hidden_states
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            _by_head(part, attn.heads)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        mixed = attend(query * attn.scale, key, value)
        mixed = mixed.view(-1, attn.heads, *mixed.shape[1:]).transpose(1, 2).flatten(2)
        mixed = attn.to_out[0](mixed)
        if len(shape) == 4:
            mixed = mixed.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            mixed = mixed + residual
        scaled: torch.Tensor = mixed / attn.rescale_output_factor
        return scaled


def _by_head(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(n, tokens, heads * d) as (n * heads, tokens, d)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2).flatten(0, 1)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query key^T) value, for scaled `query` (n, l, d), `key` and `value` (n, s, d) -> (n, l, d).

    A column of ones beside `value` sums the weights in the same product, so that they need no pass
    of their own to be normalized; zeros fill the rest of a vector register.
    """
    count, length, depth = query.shape
    scores = key.shape[1]
    heads = max(1, min(count, _SCORES_AT_ONCE // (length * scores)))
    rows = max(1, min(length, _SCORES_AT_ONCE // (heads * scores)))
    key, mixed = key.transpose(1, 2), torch.empty_like(query)
    value = F.pad(F.pad(value, (0, 1), value=1.0), (0, -(depth + 1) % 16))
    for head in range(0, count, heads):
        some = slice(head, head + heads)
        for row in range(0, length, rows):
            weights = torch.bmm(query[some, row : row + rows], key[some])
            _exponentiate(weights)
            summed = torch.bmm(weights, value[some])
            torch.div(summed[..., :depth], summed[..., depth : depth + 1], out=mixed[some, row : row + rows])
    return mixed


def _exponentiate(scores: torch.Tensor) -> None:
    """The exponentials of `scores` (n, l, s), or their softmax where one of the n has too large a score. In place.

    Each of the n decides for itself, so that no image of a batch changes how another is rounded.
    """
    # One look at all of them comes first: it takes a quarter of the time of two at each, and mostly suffices.
    if max(abs(extreme) for extreme in torch.stack(scores.aminmax()).tolist()) < _SAFE_EXPONENT:
        scores.exp_()
        return
    large = torch.maximum(scores.amax((1, 2)), -scores.amin((1, 2))) >= _SAFE_EXPONENT
    normalized = torch.softmax(scores[large], -1)
    scores.exp_()[large] = normalized


class PackedConv2d(nn.Module):
    """A convolution whose weight is laid out for oneDNN at the first call, for the shape it then meets."""

    def __init__(self, conv: nn.Conv2d, mapped: bool = False) -> None:
        super().__init__()
        self._mapped = mapped
        self.bias = conv.bias
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._weight = conv.weight
        self._packed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Conv2d`; channels last in memory."""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight.detach(), *self._geometry, list(x.shape)
            )
            if self._mapped:
                _let_go(self._weight)
            del self._weight
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, self.bias, *self._geometry, "none", [], ""
        )
        return result


def _let_go(weight: torch.Tensor) -> None:
    """Return the memory of `weight`, pages of a file that is mapped, and which nobody will read again."""
    if sys.platform == "linux":
        page = mmap.PAGESIZE
        first = -(-weight.data_ptr() // page) * page
        length = weight.data_ptr() + weight.nbytes - first
        if length > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _pack_convolutions(model: nn.Module, mapped: bool) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                setattr(parent, name, PackedConv2d(child, mapped))
