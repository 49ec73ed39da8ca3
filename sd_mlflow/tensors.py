"""Weights from file to file, one tensor in memory at a time: the safetensors format, and `.bin` read safely.

Format: https://github.com/huggingface/safetensors#format. The library reads a file lazily but
writes only what is wholly in memory, and a v1-4 UNet is 3.4 GB; hence this writer.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sd_mlflow.errors import CheckpointError
from sd_mlflow.manifest import FileEntry

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file; `load` reads it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes that the tensor takes in its file."""
        return prod(self.shape) * self.dtype.itemsize


def read(path: Path) -> list[StoredTensor]:
    """The tensors of a `.safetensors` or `.bin` file, none of them read yet.

    Raises `CheckpointError` for a damaged file, and for a pickle that holds more than tensors.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def write(
    path: Path, tensors: Sequence[StoredTensor], dtype: torch.dtype, advance: Callable[[int], None]
) -> FileEntry:
    """Write `tensors` to `path`, floating-point ones cast to `dtype`, under their own names.

    `advance` hears of the source's bytes. Raises `CheckpointError` for a value that is not
    finite, or too large for `dtype`.
    """
    # Wide types first keeps every tensor aligned, as the library's own writer does.
    ordered = sorted(tensors, key=lambda t: (-_cast_dtype(t.dtype, dtype).itemsize, t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        cast = _cast_dtype(tensor.dtype, dtype)
        end = offset + prod(tensor.shape) * cast.itemsize
        header[tensor.name] = {
            "dtype": _CODES[cast],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in (struct.pack("<Q", len(text)), text):
            size += file.write(block)
            digest.update(block)
        for tensor in ordered:
            data = _cast(tensor, dtype)
            size += file.write(data)
            digest.update(data)
            advance(tensor.size)
    return FileEntry(size=size, sha256=digest.hexdigest())


def _cast(tensor: StoredTensor, dtype: torch.dtype) -> memoryview:
    """The bytes of `tensor` in the dtype it is written in."""
    values = tensor.load()
    cast = values.to(_cast_dtype(tensor.dtype, dtype)).contiguous()
    if cast.is_floating_point() and not cast.isfinite().all():
        reason = f"too large for {dtype}" if values.isfinite().all() else "not finite"
        raise CheckpointError(f"{tensor.name} holds a value that is {reason}")
    data: memoryview = cast.reshape(-1).view(torch.uint8).numpy().data
    return data


def _cast_dtype(stored: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    return wanted if stored.is_floating_point else stored


def _read_safetensors(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="pt"):
            pass  # the library checks the header: sizes, offsets, overlaps
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is damaged: {error}") from None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)

    def stored(name: str, entry: dict[str, Any]) -> StoredTensor:
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path.name}: {name} is of dtype {entry['dtype']}, which is not supported")
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]

        def load() -> torch.Tensor:
            # Read, not mapped: mapped pages would count as this process's memory.
            with path.open("rb") as file:
                file.seek(8 + length + begin)
                data = bytearray(file.read(end - begin))
            return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)

        return StoredTensor(name, dtype, shape, load)

    return [stored(name, entry) for name, entry in header.items()]


def _read_bin(path: Path) -> list[StoredTensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # torch's own message advises to load it all the same: not repeated.
        raise CheckpointError(
            f"{path.name} is damaged, or holds more than tensors, and nothing else in it is loaded, for safety. "
            "Convert it to safetensors where you trust it."
        ) from error
    if not isinstance(content, dict) or not all(_is_entry(*item) for item in content.items()):
        raise CheckpointError(f"{path.name} is not a state dict: it must map names to dense tensors")

    def stored(name: str, tensor: torch.Tensor) -> StoredTensor:
        if tensor.dtype not in _CODES:
            raise CheckpointError(f"{path.name}: {name} is of {tensor.dtype}, which is not supported")
        return StoredTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)

    return [stored(name, tensor) for name, tensor in content.items()]


def _is_entry(name: Any, tensor: Any) -> bool:
    """Whether this is a name and a tensor whose values are all there."""
    dense = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and not tensor.is_meta
    return dense and isinstance(name, str)
