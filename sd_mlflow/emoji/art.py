"""The drawings that scenes are composed of, from packages on the npm registry.

Three art styles of the same subjects: Microsoft Fluent Emoji as 3D renders and as flat
icons (MIT), and Google Noto Emoji (Apache-2.0). NOTICE names the licences.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

from sd_mlflow.emoji.subjects import SUBJECTS, icon_names

#: npm package -> (version, SHA-256 of its tarball). `npm pack` runs no script of theirs.
PACKAGES = {
    "@lobehub/fluent-emoji-3d": ("1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "@iconify-json/noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
}

#: Edge of a rendered drawing, in pixels: larger than any use of it in a 128-pixel scene.
ICON_SIZE = 160

Art = dict[tuple[str, str], Image.Image]


def fetch(package: str, cache: Path) -> Path:
    """The tarball of `package`, downloaded into `cache` unless it is there.

    Raises `ValueError` if its SHA-256 is not the one pinned in `PACKAGES`.
    """
    version, digest = PACKAGES[package]
    tarball = cache / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    if not tarball.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", "--ignore-scripts", f"{package}@{version}"], cwd=cache, check=True
        )
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(f"{tarball} has SHA-256 {found}, expected {digest}: delete it and run again")
    return tarball


def load_art(cache: Path) -> Art:
    """Every drawing, RGBA and `ICON_SIZE` square, by (subject, style)."""
    flat = _read(fetch("@iconify-json/fluent-emoji-flat", cache), ["icons.json", "chars.json"])
    noto = _read(fetch("@iconify-json/noto", cache), ["icons.json"])
    flat_icons, chars, noto_icons = (
        json.loads(flat["icons.json"]),
        json.loads(flat["chars.json"]),
        json.loads(noto["icons.json"]),
    )
    code_points = {name: code for code, name in chars.items()}
    webp = _read_renders(fetch("@lobehub/fluent-emoji-3d", cache))
    art: Art = {}
    for subject in SUBJECTS:
        fluent_name, noto_name = icon_names(subject)
        art[subject, "photograph"] = _square(webp[code_points[fluent_name]])
        art[subject, "cartoon"] = _square(_render(noto_icons, noto_name))
        art[subject, "flat icon"] = _square(_render(flat_icons, fluent_name))
    return art


def _read(tarball: Path, names: list[str]) -> dict[str, bytes]:
    with tarfile.open(tarball) as tar:
        return {name: tar.extractfile(f"package/{name}").read() for name in names}  # type: ignore[union-attr]


def _read_renders(tarball: Path) -> dict[str, bytes]:
    """Every WebP of the tarball by its code points, without the variation selector FE0F."""
    with tarfile.open(tarball) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".webp")]
        return {
            Path(member.name).stem.replace("-fe0f", ""): tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in members
        }


def _render(collection: dict[str, Any], name: str) -> bytes:
    """The icon `name` of an Iconify collection as PNG bytes."""
    icon = collection["icons"].get(name) or collection["icons"][collection["aliases"][name]["parent"]]
    width = icon.get("width", collection.get("width", 16))
    height = icon.get("height", collection.get("height", 16))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=ICON_SIZE, height=ICON_SIZE))


def _square(encoded: bytes) -> Image.Image:
    """Decode, crop to what is drawn, and centre it in a square of `ICON_SIZE`."""
    image = Image.open(io.BytesIO(encoded)).convert("RGBA")
    image = image.crop(image.getbbox())
    image.thumbnail((ICON_SIZE, ICON_SIZE), Image.Resampling.LANCZOS)
    scale = ICON_SIZE / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (ICON_SIZE, ICON_SIZE))
    square.paste(image, ((ICON_SIZE - image.width) // 2, (ICON_SIZE - image.height) // 2))
    return square
