"""The manifest of a checkpoint folder: which files it holds, and the SHA-256 of each.

Written when a checkpoint is packaged, checked before a weight is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sd_mlflow.errors import IntegrityError

MANIFEST = "manifest.json"
_BLOCK = 1 << 22

DTypeName = Literal["float32", "float16", "bfloat16"]


class FileEntry(BaseModel):
    """Size in bytes and SHA-256, in hexadecimal, of one file."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint folder holds and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="The checkpoint's name, as images carry it.")
    revision: str | None = Field(None, description="The hub commit it was taken at.")
    dtype: DTypeName = Field(description="What the weights are stored and run in.")
    safety_checker: bool = Field(description="Whether it has one; if not, images are flagged as not checked.")
    files: dict[str, FileEntry] = Field(description="By path, with forward slashes.")

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all the files' hashes: the identity of the checkpoint."""
        lines = "".join(f"{path} {entry.sha256}\n" for path, entry in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> FileEntry:
    """Size and SHA-256 of `path`; `advance` hears of each block's bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            if advance:
                advance(len(block))
    return FileEntry(size=size, sha256=digest.hexdigest())


def write(
    folder: Path,
    *,
    name: str,
    revision: str | None,
    dtype: DTypeName,
    safety_checker: bool,
    known: dict[str, FileEntry] | None = None,
) -> Manifest:
    """Write the manifest of `folder`, hashing every file in it that is not `known` already."""
    known = known or {}
    files = {path: known.get(path) or hash_file(folder / path) for path in _files_of(folder)}
    manifest = Manifest(name=name, revision=revision, dtype=dtype, safety_checker=safety_checker, files=files)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest of `folder`, its files unchecked. Raises `IntegrityError` if there is none to read."""
    try:
        return Manifest.model_validate(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise IntegrityError(
            f"{folder} has no {MANIFEST}: package the checkpoint with `sd-mlflow package`"
        ) from None
    except (ValueError, ValidationError) as error:
        raise IntegrityError(f"{folder / MANIFEST} cannot be read: {error}") from None


def verify(folder: Path, advance: Callable[[int], None] | None = None) -> Manifest:
    """The manifest of `folder`, after checking every file against it.

    Raises `IntegrityError` naming the first file that is missing, changed, or not listed.
    """
    manifest = read(folder)
    found = set(_files_of(folder))
    for path in sorted(found ^ manifest.files.keys()):
        state = "is not in the manifest" if path in found else "is missing"
        raise IntegrityError(f"{path} {state}: package the checkpoint again")

    def check(path: str) -> str | None:
        return None if hash_file(folder / path, advance) == manifest.files[path] else path

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for changed in pool.map(check, sorted(manifest.files)):
            if changed:
                raise IntegrityError(f"{changed} is not the file that was packaged: its SHA-256 differs")
    return manifest


def _files_of(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path != MANIFEST and "__pycache__" not in path)
