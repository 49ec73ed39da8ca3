"""Which files of a checkpoint count, and that what comes out is what went in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import WEIGHTS, change, converted, emoji_copy, file_of, read, shard
from safetensors.torch import save_file

from sd_mlflow import checkpoint, pipeline
from sd_mlflow.errors import CheckpointError
from sd_mlflow.pipeline import Pipeline

TEXTS = [
    "feature_extractor/preprocessor_config.json",
    "model_index.json",
    "safety_checker/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
REST = ["safety_checker/model.safetensors", "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.bin"]
UNET = "unet/diffusion_pytorch_model"
PARTS = [f"{UNET}-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([f"{UNET}.safetensors"], [f"{UNET}.safetensors"]),
        ([f"{UNET}.safetensors", f"{UNET}.fp16.safetensors"], [f"{UNET}.safetensors"]),
        ([f"{UNET}.safetensors", f"{UNET}.non_ema.safetensors"], [f"{UNET}.safetensors"]),
        ([f"{UNET}.fp16.safetensors"], [f"{UNET}.fp16.safetensors"]),
        ([f"{UNET}.safetensors", f"{UNET}.bin"], [f"{UNET}.safetensors"]),
        ([f"{UNET}.fp16.safetensors", f"{UNET}.bin"], [f"{UNET}.fp16.safetensors"]),
        ([f"{UNET}.bin", f"{UNET}.fp16.bin"], [f"{UNET}.bin"]),
        ([*PARTS, f"{UNET}.safetensors.index.json"], PARTS),
        ([*PARTS[1:], *PARTS[:1]], PARTS),
        ([*PARTS, f"{UNET}.safetensors"], [f"{UNET}.safetensors"]),
        (
            [f"{UNET}.fp16-00002-of-00002.safetensors", f"{UNET}.fp16-00001-of-00002.safetensors"],
            [f"{UNET}.fp16-00001-of-00002.safetensors", f"{UNET}.fp16-00002-of-00002.safetensors"],
        ),
        ([f"{UNET}.safetensors", "unet/old.safetensors", "unet/model.ckpt", "x.ckpt"], [f"{UNET}.safetensors"]),
    ],
    ids=[
        "plain",
        "full before fp16",
        "full before non_ema",
        "only fp16",
        "safetensors before bin",
        "fp16 safetensors before bin",
        "only bin",
        "in parts",
        "in parts, listed in disorder",
        "whole before parts",
        "fp16 in parts",
        "strangers left out",
    ],
)
def test_the_best_copy_of_the_weights_is_chosen(files: list[str], expected: list[str]) -> None:
    chosen = checkpoint.select([*files, *TEXTS, *REST], safety_checker=True)
    assert chosen.weights["unet"] == expected
    assert chosen.weights["vae"] == ["vae/diffusion_pytorch_model.bin"]
    assert chosen.texts == TEXTS


def test_licence_and_model_card_come_along_and_nothing_else_does() -> None:
    beside = ["LICENSE", "LICENSE.md", "README.md", ".gitattributes", "v1-variants-scores.jpg", "unet/notes.txt"]
    chosen = checkpoint.select([f"{UNET}.safetensors", *TEXTS, *REST, *beside], safety_checker=True)
    assert set(chosen.texts) - {*TEXTS} == {"LICENSE", "LICENSE.md", "README.md"}


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_missing_part_is_named(part: int) -> None:
    present = [name for name in PARTS if name != PARTS[part - 1]]
    with pytest.raises(CheckpointError, match=f"unet lacks part {part} of 3 of its weights"):
        checkpoint.select([*present, *TEXTS, *REST], safety_checker=True)


def test_a_component_without_weights_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"unet has no weights: neither safetensors nor \.bin"):
        checkpoint.select(["unet/model.ckpt", *TEXTS, *REST], safety_checker=True)


@pytest.mark.parametrize(
    "absent", [text for text in TEXTS if text not in ("model_index.json", "safety_checker/config.json")]
)
def test_what_is_missing_is_named(absent: str) -> None:
    present = [text for text in TEXTS if text != absent]
    with pytest.raises(CheckpointError, match=f"not in Stable Diffusion v1-4's layout: no .*{Path(absent).stem}"):
        checkpoint.select([f"{UNET}.safetensors", *present, *REST], safety_checker=True)


def test_everything_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"text_encoder/config\.json, .*vae/config\.json.*tokenizer/"):
        checkpoint.select(["model.ckpt", "README.md"], safety_checker=True)


def test_a_checkpoint_without_safety_checker_needs_none_of_its_files() -> None:
    ours = [text for text in TEXTS if not text.startswith(("safety_checker", "feature_extractor"))]
    chosen = checkpoint.select([f"{UNET}.safetensors", *ours, *REST], safety_checker=False)
    assert chosen.texts == ours
    assert "safety_checker" not in chosen.weights


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "./no/folder"])
def test_a_source_that_is_neither_folder_nor_hub_id_says_what_it_could_be(source: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder, nor sd-emoji, nor a hub id such as CompVis/"):
        checkpoint.find(source)


def test_a_hub_that_is_out_of_reach_is_one_clear_line() -> None:
    """The tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(CheckpointError, match=r"CompVis/stable-diffusion-v1-4 cannot be had from the hub \(.+\)"):
        checkpoint.find("CompVis/stable-diffusion-v1-4")


def test_a_folder_goes_by_its_own_name(tmp_path: Path) -> None:
    found = checkpoint.find(str(emoji_copy(tmp_path / "my-model")))
    assert (found.name, found.revision, found.safety_checker) == ("my-model", None, True)


def in_parts(folder: Path) -> None:
    for component, parts in zip(WEIGHTS, (1, 3, 2, 2), strict=True):
        shard(folder, component, parts)


def fp16_variant_only(folder: Path) -> None:
    for component in WEIGHTS:
        file_of(folder, component).rename(file_of(folder, component, ".fp16.safetensors"))


def bin_only(folder: Path) -> None:
    for component in WEIGHTS:
        torch.save(read(folder, component), file_of(folder, component, ".bin"))
        file_of(folder, component).unlink()


@pytest.mark.parametrize("layout", [in_parts, fp16_variant_only, bin_only])
def test_whatever_the_layout_the_tensors_are_the_source_s(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    source = emoji_copy(tmp_path / "source")
    original = {component: read(source, component) for component in WEIGHTS}
    layout(source)
    loaded = pipeline.load(converted(source, tmp_path / "out", "float32"), "cpu")
    for component, expected in original.items():
        found = network(loaded, component).state_dict()
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name].float())] == []
    assert not [file for file in (tmp_path / "out").rglob("*") if file.suffix == ".bin" or ".fp16." in file.name]


def network(loaded: Pipeline, component: str) -> torch.nn.Module:
    model = loaded.prompt_encoder.text_encoder if component == "text_encoder" else getattr(loaded, component)
    assert isinstance(model, torch.nn.Module)
    return model


def test_the_progress_adds_up_to_the_weights(tmp_path: Path) -> None:
    heard: list[int] = []
    source = checkpoint.find(checkpoint.SD_EMOJI)
    checkpoint.convert(source, tmp_path, "bfloat16", heard.append)
    assert sum(heard) == pytest.approx(checkpoint.weights_size(source), rel=0.01)  # headers apart


def test_a_component_that_lacks_a_tensor_does_not_load(tmp_path: Path) -> None:
    source = emoji_copy(tmp_path / "source")
    change(source, "unet", lambda weights: {k: v for k, v in weights.items() if k != "conv_in.weight"})
    with pytest.raises(CheckpointError, match=r"unet lacks 1 tensors that its config needs: .*conv_in\.weight"):
        pipeline.load(converted(source, tmp_path / "out", "float32"), "cpu")


def test_a_tensor_of_the_wrong_shape_does_not_load(tmp_path: Path) -> None:
    source = emoji_copy(tmp_path / "source")
    change(source, "vae", lambda weights: weights | {"quant_conv.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"vae cannot be loaded: .*quant_conv\.bias"):
        pipeline.load(converted(source, tmp_path / "out", "float32"), "cpu")


def test_a_bad_weight_is_refused_and_named(tmp_path: Path) -> None:
    source = emoji_copy(tmp_path / "source")
    save_file({"conv_in.weight": torch.tensor([float("nan")])}, file_of(source, "unet"))
    with pytest.raises(CheckpointError, match=r"conv_in\.weight holds a value that is not finite"):
        converted(source, tmp_path / "out", "float32")
