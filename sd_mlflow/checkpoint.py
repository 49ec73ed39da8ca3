"""Source checkpoints: where they come from, which of their files count, and their conversion.

A source is a diffusers folder in v1-4's layout, `sd-emoji`, or a hub id. Of a component's
weights, safetensors go before `.bin`, full precision before a variant such as `fp16`, and a
file may come in parts (`-00001-of-00002`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shutil import copyfile
from typing import Any

from sd_mlflow.errors import CheckpointError
from sd_mlflow.manifest import FileEntry

SD_EMOJI = "sd-emoji"
#: Component -> the base names of its weights: as they are written, then as a source may have them.
_WEIGHTS = {
    "text_encoder": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "safety_checker": ("model", "pytorch_model"),
}
#: What else belongs to a checkpoint: configurations, vocabulary, licence and model card.
_TEXTS = (
    "model_index.json",
    "README.md",
    "LICENSE*",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "safety_checker/config.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
)
_REQUIRED = ("text_encoder/config.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
#: Either will do; without one, the tokenizer would load and know no word.
_VOCABULARIES = ({"tokenizer/tokenizer.json"}, {"tokenizer/vocab.json", "tokenizer/merges.txt"})


@dataclass(frozen=True)
class Source:
    """A checkpoint folder on this machine, the name it goes by, and the hub commit it was taken at."""

    folder: Path
    name: str
    revision: str | None = None

    @property
    def safety_checker(self) -> bool:
        """Whether the checkpoint has a safety checker."""
        return (self.folder / "safety_checker" / "config.json").exists()


def find(source: str, revision: str | None = None) -> Source:
    """The checkpoint that `source` names, downloaded if it is a hub id.

    Raises `CheckpointError` if it is neither a folder, nor `sd-emoji`, nor an id the hub knows.
    """
    if source == SD_EMOJI:
        return Source(Path(__file__).parent / "emoji" / "weights", SD_EMOJI)
    folder = Path(source)
    if folder.is_dir():
        return Source(folder, folder.resolve().name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _download(source, revision)
    raise CheckpointError(
        f"{source!r} is neither a folder, nor {SD_EMOJI}, nor a hub id such as CompVis/stable-diffusion-v1-4"
    )


def convert(source: Source, target: Path, dtype: str, advance: Callable[[int], None]) -> dict[str, FileEntry]:
    """Write `source` to the folder `target`: weights as safetensors in `dtype`, tensor by tensor.

    Returns the entries of the files whose hashes are known. Raises `CheckpointError`.
    """
    import torch

    from sd_mlflow import tensors

    names = _names(source.folder)
    wanted = select(names, source.safety_checker)
    for name in wanted.texts:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copyfile(source.folder / name, target / name)
    entries: dict[str, FileEntry] = {}
    for component, files in wanted.weights.items():
        base = _WEIGHTS[component][0]
        weight_map: dict[str, str] = {}
        for number, name in enumerate(files, start=1):
            part = f"-{number:05}-of-{len(files):05}" if len(files) > 1 else ""
            written = f"{base}{part}.safetensors"
            stored = tensors.read(source.folder / name)
            weight_map |= {tensor.name: written for tensor in stored}
            entries[f"{component}/{written}"] = tensors.write(
                target / component / written, stored, getattr(torch, dtype), advance
            )
        if len(files) > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (target / component / f"{base}.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return entries


def weights_size(source: Source) -> int:
    """Bytes of the weights that `convert` will read."""
    weights = select(_names(source.folder), source.safety_checker).weights
    return sum((source.folder / name).stat().st_size for files in weights.values() for name in files)


@dataclass(frozen=True)
class Selection:
    """The files of a checkpoint that count: texts to copy, and each component's weights in their parts."""

    texts: list[str]
    weights: dict[str, list[str]]


def select(names: Iterable[str], safety_checker: bool) -> Selection:
    """Choose among the files of a checkpoint, given by path with forward slashes.

    Raises `CheckpointError` naming what is missing.
    """
    names = sorted(names)
    components = [c for c in _WEIGHTS if safety_checker or c != "safety_checker"]
    texts = [name for name in names if any(fnmatch(name, pattern) for pattern in _TEXTS)]
    if not safety_checker:
        texts = [text for text in texts if not text.startswith(("safety_checker/", "feature_extractor/"))]
    required = [*_REQUIRED, *(["feature_extractor/preprocessor_config.json"] if safety_checker else [])]
    missing = [text for text in required if text not in texts]
    if not any(vocabulary <= {*texts} for vocabulary in _VOCABULARIES):
        missing.append("tokenizer/vocab.json with merges.txt")
    if missing:
        raise CheckpointError(f"the checkpoint is not in Stable Diffusion v1-4's layout: no {', '.join(missing)}")
    return Selection(texts, {component: _weights(component, names) for component in components})


def _weights(component: str, names: Iterable[str]) -> list[str]:
    """The files of the best copy of a component's weights, in the order of their parts."""
    bases = "|".join(_WEIGHTS[component])
    pattern = re.compile(
        rf"{component}/(?:{bases})(?:\.(?P<variant>\w+))?(?:-(?P<part>\d+)-of-(?P<parts>\d+))?\.(?P<kind>safetensors|bin)"
    )
    copies: dict[tuple[bool, bool, str, int], dict[int, str]] = {}
    for name in names:
        if found := pattern.fullmatch(name):
            variant = found["variant"] or ""
            copy = (found["kind"] == "bin", bool(variant), variant, int(found["parts"] or 1))
            copies.setdefault(copy, {})[int(found["part"] or 1)] = name
    if not copies:
        raise CheckpointError(f"{component} has no weights: neither safetensors nor .bin")
    best = min(copies)
    *_, parts = best
    absent = set(range(1, parts + 1)) - copies[best].keys()
    if absent:
        raise CheckpointError(f"{component} lacks part {min(absent)} of {parts} of its weights")
    return [copies[best][part] for part in sorted(copies[best])]


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _download(repo_id: str, revision: str | None) -> Source:
    """The files of a hub model that count, at the commit that `revision` (or the main branch) is now."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repo_id, revision=revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        chosen = select(names, "safety_checker/config.json" in names)
        files = [*chosen.texts, *(name for part in chosen.weights.values() for name in part)]
        folder: Any = huggingface_hub.snapshot_download(repo_id, revision=info.sha, allow_patterns=files)
    except CheckpointError:
        raise
    except Exception as error:  # whatever its HTTP client raises comes through as it is
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{repo_id} cannot be had from the hub ({type(error).__name__}: {first_line}): check its name, "
            "your login (`hf auth login`) and the network, or give a folder"
        ) from error
    return Source(Path(folder), repo_id, info.sha)
