"""The architecture of sd-emoji: v1-4's seven components, in the same classes, small."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from sd_mlflow.emoji.subjects import SIZE

LATENT_SIZE = SIZE // 8
#: Width of the text encoder, hence of the UNet's cross-attention.
TEXT_WIDTH = 192
#: Edge of the safety checker's input, in pixels.
CHECKER_SIZE = 96
#: Width of the space in which the safety checker compares images with concepts.
CONCEPT_WIDTH = 64

_START, _END = "<|startoftext|>", "<|endoftext|>"


def autoencoder() -> AutoencoderKL:
    """Three downsamplings (8 pixels a latent), 4 latent channels; convolutional throughout, 3.3 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def unet() -> UNet2DConditionModel:
    """Latents of 16x16: convolutions there, cross-attention at 8x8 and 4x4, 13.4 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 160, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers over 77 positions."""
    return CLIPTextModel(_text_config(tokenizer, width=TEXT_WIDTH, layers=3, heads=4, positions=77))


def safety_checker() -> StableDiffusionSafetyChecker:
    """A vision transformer of 4 layers on 12x12 patches of a 96-pixel picture."""
    vision = CLIPVisionConfig(
        image_size=CHECKER_SIZE,
        patch_size=8,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=CONCEPT_WIDTH,
    )
    # The class wants a text tower's configuration, though it has no text tower.
    text = CLIPTextConfig(
        vocab_size=1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return StableDiffusionSafetyChecker(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=CONCEPT_WIDTH)
    )


def text_tower(tokenizer: CLIPTokenizer, length: int) -> CLIPTextModelWithProjection:
    """What embeds words where the safety checker embeds pictures: one layer over `length` positions."""
    return CLIPTextModelWithProjection(
        _text_config(tokenizer, width=CONCEPT_WIDTH, layers=1, heads=2, positions=length)
    )


def _text_config(
    tokenizer: CLIPTokenizer, *, width: int, layers: int, heads: int, positions: int
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def feature_extractor() -> CLIPImageProcessor:
    """The safety checker's preprocessing, with CLIP's own mean and deviation."""
    return CLIPImageProcessor(
        size={"shortest_edge": CHECKER_SIZE}, crop_size={"height": CHECKER_SIZE, "width": CHECKER_SIZE}
    )


def scheduler() -> PNDMScheduler:
    """v1-4's scheduler, with v1-4's configuration."""
    return PNDMScheduler.from_config(
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "clip_sample": False,  # not PNDM's, but kept for whoever swaps in DDIM
        }
    )


def tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE, its vocabulary learnt from `captions`, so that each of their words is one token.

    Words that no caption holds are spelt in smaller pieces, never lost.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learnt["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, and the two special tokens last.
    words = dict.fromkeys([*alphabet, *(f"{byte}</w>" for byte in alphabet)])
    words.update(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    vocabulary = {word: number for number, word in enumerate([*words, _START, _END])}
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        merges_file.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=_END, unk_token=_END)


def write_model_index(folder: Path) -> None:
    """Write `model_index.json`, by which diffusers knows the classes of the seven components."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make `vae` give latents whose channels have mean 0 and deviation 1, its pictures unchanged.

    `mean` and `deviation`, (n, 4, h, w), are the latents of a data set as they are; returns them
    as they are now. Folded into the two 1x1 convolutions around the latents.
    """
    centre, scale = (part.to(vae.device) for part in (mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3))))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:4] /= scale[:, None, None, None]
    encode.bias[:4] = (encode.bias[:4] - centre) / scale
    encode.bias[4:] -= 2 * scale.log()
    decode.bias += decode.weight[:, :, 0, 0] @ centre
    decode.weight *= scale[None, :, None, None]
    centre, scale = centre[None, :, None, None].cpu(), scale[None, :, None, None].cpu()
    return (mean - centre) / scale, deviation / scale
