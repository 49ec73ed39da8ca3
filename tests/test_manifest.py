"""The manifest names every file of a checkpoint, and no other file passes for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd_mlflow import manifest
from sd_mlflow.errors import IntegrityError
from sd_mlflow.manifest import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_bytes(bytes(range(256)))
    (tmp_path / "README.md").write_text("a model card")
    write(tmp_path)
    return tmp_path


def write(folder: Path, name: str = "tiny") -> Manifest:
    return manifest.write(folder, name=name, revision=None, dtype="float32", safety_checker=True)


def test_a_whole_folder_passes_and_every_byte_is_read(folder: Path) -> None:
    heard: list[int] = []
    checked = manifest.verify(folder, heard.append)
    assert checked == manifest.read(folder)
    assert checked.files.keys() == {"README.md", "unet/weights"}
    assert sum(heard) == 256 + len("a model card")


def test_a_flipped_byte_is_refused_and_its_file_named(folder: Path) -> None:
    changed = bytearray((folder / "unet" / "weights").read_bytes())
    changed[100] ^= 1
    (folder / "unet" / "weights").write_bytes(changed)
    with pytest.raises(IntegrityError, match="unet/weights is not the file that was packaged"):
        manifest.verify(folder)


def test_a_missing_file_is_refused_and_named(folder: Path) -> None:
    (folder / "unet" / "weights").unlink()
    with pytest.raises(IntegrityError, match="unet/weights is missing"):
        manifest.verify(folder)


def test_an_added_file_is_refused_and_named(folder: Path) -> None:
    (folder / "unet" / "more.bin").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"unet/more\.bin is not in the manifest"):
        manifest.verify(folder)


def test_a_folder_without_a_manifest_is_refused(folder: Path) -> None:
    (folder / manifest.MANIFEST).unlink()
    with pytest.raises(IntegrityError, match=r"has no manifest\.json.*sd-mlflow package"):
        manifest.verify(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"name": "tiny"}', "\xff"],
    ids=["empty", "cut", "list", "bare", "partial", "not-utf8"],
)
def test_a_malformed_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / manifest.MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read"):
        manifest.verify(folder)


def test_a_manifest_that_says_more_than_it_may_is_refused(folder: Path) -> None:
    content = json.loads((folder / manifest.MANIFEST).read_text())
    (folder / manifest.MANIFEST).write_text(json.dumps(content | {"code": "x"}))
    with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read"):
        manifest.verify(folder)


def test_a_hash_that_is_known_already_is_not_made_again(folder: Path) -> None:
    known = {"unet/weights": manifest.FileEntry(size=1, sha256="f" * 64)}
    written = manifest.write(folder, name="tiny", revision=None, dtype="float32", safety_checker=True, known=known)
    assert written.files["unet/weights"] == known["unet/weights"]


def test_the_digest_changes_with_the_content_alone(folder: Path) -> None:
    before = manifest.read(folder).digest
    (folder / "README.md").touch()
    assert write(folder, name="another name").digest == before
    (folder / "README.md").write_text("another card")
    assert write(folder).digest != before


def test_the_digest_changes_with_a_file_s_path(folder: Path) -> None:
    before = manifest.read(folder).digest
    (folder / "README.md").rename(folder / "LICENSE")
    assert write(folder).digest != before
