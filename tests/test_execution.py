"""However the networks are run, they compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import converted, with_attention
from torch.nn import functional as F

from sd_mlflow import execution, features, pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.errors import PackageError
from sd_mlflow.execution import Execution, PackedConv2d, attend
from sd_mlflow.pipeline import Pipeline


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize(
    ("heads", "length", "keys", "depth"), [(4, 64, 64, 40), (3, 200, 77, 16), (2, 16, 5, 160), (2, 700, 4000, 8)]
)
def test_attention_by_products_is_attention(heads: int, length: int, keys: int, depth: int, spread: float) -> None:
    """Large scores (`spread` 30) take the way with the maximum subtracted; 4000 keys are cut into blocks."""
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(heads, n, depth, generator=rng) for n in (length, keys, keys))
    expected = F.scaled_dot_product_attention(query * spread, key, value)
    found = attend(query * spread * depth**-0.5, key, value)
    assert relative_error(found, expected) < 1e-4


def test_attention_whose_scores_would_overflow_stays_finite() -> None:
    query = torch.full((1, 4, 8), 100.0)
    mixed = attend(query, torch.full((1, 6, 8), 100.0), torch.ones(1, 6, 8))
    assert torch.allclose(mixed, torch.ones_like(mixed))
    assert torch.allclose(attend(-query, query, torch.ones(1, 4, 8)), torch.ones_like(mixed))


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_large_scores_of_one_image_leave_the_others_bytes_alone(spread: float) -> None:
    rng = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 4, 16, 32, generator=rng).bfloat16()
    neighbour = spread * torch.randn(4, 16, 32, generator=rng).bfloat16()
    alone = attend(query, key, value)
    beside = attend(torch.cat([neighbour, query]), torch.cat([neighbour, key]), torch.cat([neighbour, value]))
    assert torch.equal(beside[4:], alone)
    assert beside.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_packed_convolution_is_that_convolution_in_every_batch(dtype: torch.dtype, stride: int) -> None:
    plain = torch.nn.Conv2d(8, 16, 3, stride=stride, padding=1).to(dtype)
    packed = PackedConv2d(plain)
    with torch.inference_mode():
        for shape in ((2, 8, 16, 16), (1, 8, 16, 16), (5, 8, 9, 24)):
            x = torch.randn(shape).to(dtype)
            assert relative_error(packed(x), plain(x)) < 0.01


@pytest.fixture(scope="module")
def with_vae_attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd-emoji with the attention that v1-4's autoencoder has, in bfloat16."""
    folder = tmp_path_factory.mktemp("execution")
    return converted(with_attention(folder / "source"), folder / "out", "bfloat16")


def loaded(folder: Path, how: Execution) -> Pipeline:
    return pipeline.load(folder, "cpu", "bfloat16", how)


def outputs(running: Pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=rng).bfloat16()
    hidden = torch.randn(2, 77, 192, generator=rng).bfloat16()
    with torch.inference_mode():
        noise, _ = features.whole(running.unet, latents, torch.tensor([500.0, 20.0]), hidden)
        return noise, running.vae.decode(latents[:1]).sample


def test_packed_networks_compute_what_eager_ones_do(with_vae_attention: Path) -> None:
    packed = loaded(with_vae_attention, Execution.PACKED)
    assert any(isinstance(module, PackedConv2d) for module in packed.unet.modules())
    for one, other in zip(outputs(packed), outputs(loaded(with_vae_attention, Execution.EAGER)), strict=True):
        assert relative_error(one, other) < 0.03


def test_compiled_networks_compute_what_eager_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with torch's tracer but not its code generator: what a GPU would run is not to be had here."""
    folder = find(SD_EMOJI).folder
    compiled = pipeline.load(folder, "cpu", "float32", "eager")
    repeated = type(compiled.unet).compile_repeated_blocks
    monkeypatch.setattr(
        type(compiled.unet), "compile_repeated_blocks", lambda self, **_: repeated(self, backend="eager")
    )
    execution.prepare(compiled.unet, Execution.COMPILED)
    execution.prepare(compiled.vae, Execution.COMPILED)
    plain = pipeline.load(folder, "cpu", "float32", "eager")
    latents, hidden, time = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 192), torch.tensor([500.0, 20.0])
    with torch.inference_mode():
        one = features.whole(compiled.unet, latents, time, hidden)[0]
        other = features.whole(plain.unet, latents, time, hidden)[0]
    assert relative_error(one, other) < 1e-5


def test_a_cpu_without_bfloat16_runs_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(execution, "computes_bfloat16", lambda: False)
    assert pipeline.load_dtype("bfloat16", cpu) is torch.float32
    assert execution.best(cpu, torch.float32) is Execution.EAGER
    monkeypatch.setattr(execution, "computes_bfloat16", lambda: True)
    assert pipeline.load_dtype("bfloat16", cpu) is torch.bfloat16
    assert execution.best(cpu, torch.bfloat16) is Execution.PACKED
    assert pipeline.load_dtype("float16", cpu) is torch.float32
    assert pipeline.load_dtype("float16", torch.device("cuda")) is torch.float16
    assert execution.best(torch.device("cuda"), torch.bfloat16) is Execution.EAGER


def test_packing_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(PackageError, match="packed runs on a CPU, not on meta"):
        pipeline.load(find(SD_EMOJI).folder, "meta", "bfloat16", "packed")
