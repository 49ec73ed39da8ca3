"""Checkpoint folders as sources lay them out, made from sd-emoji."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from sd_mlflow import checkpoint, manifest

EMOJI = checkpoint.find(checkpoint.SD_EMOJI).folder
#: Component -> what its safetensors and its `.bin` are called.
WEIGHTS = {
    "text_encoder": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "safety_checker": ("model", "pytorch_model"),
}


def emoji_copy(folder: Path) -> Path:
    """sd-emoji in the new folder `folder`, as a source: without a manifest."""
    shutil.copytree(EMOJI, folder, ignore=shutil.ignore_patterns(manifest.MANIFEST))
    return folder


def file_of(folder: Path, component: str, suffix: str = ".safetensors") -> Path:
    """Where the weights of `component` are, `suffix` being `.safetensors`, `.fp16.safetensors` or `.bin`."""
    return folder / component / f"{WEIGHTS[component][suffix.endswith('.bin')]}{suffix}"


def read(folder: Path, component: str) -> dict[str, Tensor]:
    """The weights of `component`, of all their parts."""
    files = sorted((folder / component).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def change(folder: Path, component: str, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the weights of `component`, in one file, by what `edit` makes of them."""
    save_file(edit(read(folder, component)), file_of(folder, component))


def shard(folder: Path, component: str, parts: int = 2) -> None:
    """Cut the weights of `component` into `parts` files and an index."""
    weights, whole = read(folder, component), file_of(folder, component)
    index = {}
    for part in range(parts):
        names = sorted(weights)[part::parts]
        file = whole.with_stem(f"{whole.stem}-{part + 1:05}-of-{parts:05}")
        save_file({name: weights[name] for name in names}, file)
        index |= dict.fromkeys(names, file.name)
    write_json(whole.with_name(f"{whole.name}.index.json"), {"metadata": {}, "weight_map": index})
    whole.unlink()


def converted(source: Path, target: Path, dtype: manifest.DTypeName) -> Path:
    """`source` as a package holds it, in the new folder `target`."""
    found = checkpoint.find(str(source))
    entries = checkpoint.convert(found, target, dtype, lambda _: None)
    manifest.write(
        target,
        name=found.name,
        revision=None,
        dtype=dtype,
        safety_checker=found.safety_checker,
        known=entries,
    )
    return target


def with_attention(folder: Path) -> Path:
    """sd-emoji in the new folder `folder`, with a random VAE that, as v1-4's and not as its own, has attention."""
    emoji_copy(folder)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 16),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
    )
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    return folder


def compvis(modern: Path, folder: Path) -> Path:
    """The checkpoint `modern` in the new folder `folder`, as CompVis published v1-4 in 2022.

    Old key names in float32 safetensors; beside them `fp16` variants and `.bin` files, whose
    values are all zero, so that reading one by mistake shows.
    """
    for component, rename in _OLD_NAMES.items():
        (folder / component).mkdir(parents=True)
        weights = {rename(name): tensor.float() for name, tensor in read(modern, component).items()}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        config = json.loads((modern / component / "config.json").read_text(encoding="utf-8"))
        buffers = _position_ids(component, config)
        save_file(weights | buffers, file_of(folder, component), {"format": "pt"})
        torch.save(zeros | buffers, file_of(folder, component, ".bin"))
        halves = {name: tensor.half() for name, tensor in zeros.items()}
        save_file(halves | buffers, file_of(folder, component, ".fp16.safetensors"), {"format": "pt"})
        write_json(folder / component / "config.json", _old_config(component, config))
    _old_tokenizer(modern / "tokenizer", folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    extractor = json.loads((modern / "feature_extractor" / "preprocessor_config.json").read_text(encoding="utf-8"))
    write_json(
        folder / "feature_extractor" / "preprocessor_config.json",
        {
            "crop_size": extractor["crop_size"]["height"],
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": extractor["image_mean"],
            "image_std": extractor["image_std"],
            "resample": 3,
            "size": extractor["size"]["shortest_edge"],
        },
    )
    write_json(folder / "model_index.json", _MODEL_INDEX)
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# The model card\n")
    return folder


def write_json(file: Path, content: object) -> None:
    """Write `content` to `file`, its folder made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _old_vae_name(name: str) -> str:
    if ".attentions." in name:
        for new, old in _OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _position_ids(component: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The buffers that transformers of 2022 wrote among the weights."""
    if component == "text_encoder":
        return {"text_model.embeddings.position_ids": torch.arange(config["max_position_embeddings"])[None]}
    if component == "safety_checker":
        vision = config["vision_config"]
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        return {"vision_model.vision_model.embeddings.position_ids": torch.arange(patches + 1)[None]}
    return {}


_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_OLD_NAMES: dict[str, Callable[[str], str]] = {
    "text_encoder": lambda name: f"text_model.{name}",
    "unet": lambda name: name,
    "vae": _old_vae_name,
    "safety_checker": lambda name: f"vision_model.{name}" if name.startswith("vision_model.") else name,
}
_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.2.2",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
}
_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
#: What configurations of 2022 said of a network; norm_num_groups is here because sd-emoji's is not the default.
_OLD_KEYS = {
    "unet": (
        "act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim down_block_types "
        "downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor "
        "norm_eps norm_num_groups out_channels sample_size up_block_types"
    ),
    "vae": (
        "act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block norm_num_groups "
        "out_channels sample_size up_block_types"
    ),
}


def _old_config(component: str, config: dict[str, Any]) -> dict[str, Any]:
    if component in _OLD_KEYS:
        kept = {key: config[key] for key in _OLD_KEYS[component].split()}
        return {"_class_name": config["_class_name"], "_diffusers_version": "0.2.2", **kept}
    config = {key: value for key, value in config.items() if key != "dtype"}
    config |= {"torch_dtype": "float32", "transformers_version": "4.21.0.dev0"}
    if component == "safety_checker":
        # Every option of text generation was written out, and each half of CLIP twice.
        generation = {"bad_words_ids": None, "do_sample": False, "num_beams": 1, "temperature": 1.0, "top_k": 50}
        config["vision_config"] = {**config["vision_config"], **generation, "model_type": "clip_vision_model"}
        config |= {
            "logit_scale_init_value": 2.6592,
            "text_config_dict": {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1},
            "vision_config_dict": config["vision_config"],
        }
    return config


def _old_tokenizer(modern: Path, folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(modern)
    folder.mkdir()
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    start, end, padding = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token

    def added(content: str) -> dict[str, Any]:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    tokens = {"bos_token": added(start), "eos_token": added(end), "unk_token": added(end)}
    write_json(folder / "special_tokens_map.json", {**tokens, "pad_token": padding})
    write_json(
        folder / "tokenizer_config.json",
        {
            **{name: {"__type": "AddedToken", **token} for name, token in tokens.items()},
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "name_or_path": "openai/clip-vit-large-patch14",
            "pad_token": padding,
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
        },
    )
