"""Weights go from file to file as the safetensors library reads and writes them, and nothing else is loaded."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_mlflow import manifest, tensors
from sd_mlflow.errors import CheckpointError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "text_model.embeddings.weight": torch.randn(7, 5, generator=generator).to(dtype),
        "odd": torch.randn(3, generator=generator).to(dtype),
        "scalar": torch.tensor(0.1).to(dtype),
        "empty": torch.empty(0, 4).to(dtype),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "mask": torch.tensor([True, False, True]),
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def rewritten(source: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the safetensors library reads from `source` after it went through ours."""
    target = source.with_name("written.safetensors")
    entry = tensors.write(target, tensors.read(source), dtype, lambda _: None)
    assert entry == manifest.hash_file(target)
    return load_file(target)


def cast(tensors_by_name: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors_by_name.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_safetensors_are_cast_as_torch_casts_and_integers_left_alone(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    save_file(weights(stored), tmp_path / "source.safetensors", {"format": "pt"})
    assert_equal(rewritten(tmp_path / "source.safetensors", dtype), cast(weights(stored), dtype))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_bin_of_tensors_is_converted(tmp_path: Path, zipped: bool) -> None:
    extra = {"transposed": torch.randn(3, 5).T, "strided": torch.randn(6)[::2]}
    source = tmp_path / "pytorch_model.bin"
    torch.save(weights() | extra, source, _use_new_zipfile_serialization=zipped)
    assert_equal(rewritten(source, torch.bfloat16), cast(weights() | extra, torch.bfloat16))


def test_reading_lists_what_is_stored_and_loads_one_tensor_when_asked(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "source.safetensors")
    stored = {tensor.name: tensor for tensor in tensors.read(tmp_path / "source.safetensors")}
    odd = stored["odd"]
    assert (odd.dtype, odd.shape, odd.size) == (torch.float32, (3,), 12)
    assert torch.equal(odd.load(), weights()["odd"])


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Every tensor is loaded only once the one before it has been written."""
    loaded: list[int] = []
    written: list[int] = []

    def load() -> Tensor:
        assert len(loaded) == len(written)
        loaded.append(1)
        return torch.ones(4)

    many = [tensors.StoredTensor(str(number), torch.float32, (4,), load) for number in range(10)]
    tensors.write(tmp_path / "out.safetensors", many, torch.float16, written.append)
    assert written == [16] * 10


@pytest.mark.parametrize("value", [70_000.0, -1e38])
def test_a_weight_too_large_for_float16_is_refused_and_named(tmp_path: Path, value: float) -> None:
    save_file({"fine": torch.ones(2), "unet.big": torch.tensor([1.0, value])}, tmp_path / "source.safetensors")
    with pytest.raises(CheckpointError, match=r"unet\.big holds a value that is too large for torch\.float16"):
        rewritten(tmp_path / "source.safetensors", torch.float16)
    assert rewritten(tmp_path / "source.safetensors", torch.bfloat16).keys() == {"fine", "unet.big"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_is_not_finite_is_refused_and_named(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    save_file({"vae.bad": torch.tensor([1.0, value])}, tmp_path / "source.safetensors")
    with pytest.raises(CheckpointError, match=r"vae\.bad holds a value that is not finite"):
        rewritten(tmp_path / "source.safetensors", dtype)


DAMAGE = {
    "cut": lambda content: content[:-5],
    "longer": lambda content: content + b"x",
    "empty": lambda content: b"",
    "a header past its end": lambda content: struct.pack("<Q", 2**60) + content[8:],
    "a git-lfs pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n",
}


@pytest.mark.parametrize(
    ("suffix", "damage"),
    # A zip archive, as a .bin is, may have bytes after its end.
    [(".safetensors", damage) for damage in DAMAGE]
    + [(".bin", damage) for damage in DAMAGE if damage != "longer"],
)
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, suffix: str, damage: str) -> None:
    source = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights(), source)
    source.write_bytes(DAMAGE[damage](source.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"model\{suffix} is damaged"):
        tensors.read(source)


class Trap:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("written_by", ["torch", "torch-legacy", "pickle"])
def test_a_pickle_that_would_run_a_command_is_refused_and_never_runs(tmp_path: Path, written_by: str) -> None:
    source, marker = tmp_path / "pytorch_model.bin", tmp_path / "marker"
    content = {"weight": torch.ones(2), "trap": Trap(marker)}
    if written_by == "pickle":
        source.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=written_by == "torch")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin .*holds more than tensors.*for safety"
    ) as refused:
        tensors.read(source)
    assert not marker.exists()
    assert "weights_only" not in str(refused.value)  # torch advises to load it all the same; we do not


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(2),
        {"state_dict": {"weight": torch.ones(2)}},
        {1: torch.ones(2)},
        {"weight": torch.ones(2).to_sparse()},
        {"weight": torch.ones(2, device="meta")},
    ],
    ids=["a tensor", "nested", "numbered", "sparse", "without values"],
)
def test_a_bin_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=r"model\.bin is not a state dict"):
        tensors.read(tmp_path / "model.bin")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_dtype_that_no_component_has_is_refused_and_named(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"odd": torch.ones(2).to(torch.float8_e4m3fn)}, source)
    with pytest.raises(CheckpointError, match=rf"model\{suffix}: odd is of .*(?i:f8|float8).*, which is not"):
        tensors.read(source)
