from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from sd_mlflow.images import NAMESPACE, SOURCE_TYPE, contact_sheet, encode, psnr

PIXELS = np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)
RECIPE = {"seed": 7, "prompt": 'a <cat> & "dog" 🐎\x00\x1b', "model": "sd-emoji@0123"}


def packet_of(encoded: bytes) -> str:
    """The XMP packet of an image, found as any other software finds it."""
    image = Image.open(io.BytesIO(encoded))
    found = image.info.get("XML:com.adobe.xmp") or image.info["xmp"]
    return found.decode() if isinstance(found, bytes) else str(found)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_an_image_carries_how_it_was_made(image_format: str) -> None:
    packet = packet_of(encode(PIXELS, image_format, 95, RECIPE))
    root = ElementTree.fromstring(re.sub(r"<\?xpacket.*?\?>", "", packet))
    values = {element.tag: element.text for element in root.iter()}
    assert values[f"{{{NAMESPACE}}}seed"] == "7"
    assert values[f"{{{NAMESPACE}}}prompt"] == 'a <cat> & "dog" 🐎'
    assert values["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == SOURCE_TYPE
    assert SOURCE_TYPE.endswith("/trainedAlgorithmicMedia")


@pytest.mark.parametrize(("image_format", "at_least"), [("png", np.inf), ("jpeg", 35), ("webp", 30)])
def test_the_pixels_survive(image_format: str, at_least: float) -> None:
    image = Image.open(io.BytesIO(encode(PIXELS, image_format, 95, RECIPE)))
    assert image.format == image_format.upper()
    assert psnr(np.asarray(image.convert("RGB")), PIXELS) >= at_least


def test_psnr_is_that_of_a_known_error() -> None:
    assert psnr(PIXELS, PIXELS) == np.inf
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(grey, grey + np.uint8(10)) == pytest.approx(20 * np.log10(25.5))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_the_same_image_is_the_same_bytes(image_format: str) -> None:
    assert encode(PIXELS, image_format, 80, RECIPE) == encode(PIXELS, image_format, 80, RECIPE)


def test_quality_tells_in_the_size() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for image_format in ("jpeg", "webp"):
        assert len(encode(noise, image_format, 20, {})) < len(encode(noise, image_format, 95, {}))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_the_longest_prompts_fit(image_format: str) -> None:
    text = "&" * 5000  # each becomes five characters of XML
    assert packet_of(encode(PIXELS, image_format, 95, {"prompt": text, "negative_prompt": text}))


def test_a_contact_sheet_writes_captions_below_the_pictures() -> None:
    black, captions = Image.new("RGB", (80, 80)), ["a cat", "a dog " * 40]
    sheet = np.asarray(contact_sheet([black, black], columns=2, edge=80, captions=captions))
    assert sheet.shape == (110, 160, 3)
    below = sheet[80:].mean(axis=2) < 128
    few, many = below[:, :80].sum(), below[:, 80:].sum()
    assert 0 < few < many
    assert not below[-1].any()


def test_a_contact_sheet_shows_every_picture() -> None:
    colours = ["red", "green", "blue"]
    sheet = contact_sheet([Image.new("RGB", (40, 20), colour) for colour in colours], columns=2, edge=40)
    assert sheet.size == (80, 80)
    assert [sheet.getpixel(at) for at in ((20, 20), (60, 20), (20, 60), (60, 60))] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
