"""Pixels become PNG, JPEG or WebP bytes that say how they were made, and that a machine made them.

What made an image is written as one XMP packet (ISO 16684-1) in every format: in PNG as the
text `XML:com.adobe.xmp`. `Iptc4xmpExt:DigitalSourceType` is `trainedAlgorithmicMedia`, by which
other software tells that the image is generated (IPTC Photo Metadata Standard 2023.1).
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, unescape

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from sd_mlflow.safety import Pixels

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
NAMESPACE = "https://sd-mlflow.invalid/ns/generation/1.0/"
_XMP_CHUNK = "XML:com.adobe.xmp"

_FIELD = re.compile(r"<sd:(\w+)>(.*?)</sd:\1>", re.DOTALL)

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:sd="{namespace}">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>sd_mlflow</xmp:CreatorTool>
{fields}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def encode(pixels: Pixels, image_format: str, quality: int, provenance: Mapping[str, object]) -> bytes:
    """`pixels`, (height, width, 3) uint8, in `image_format` (png, jpeg, webp), the same bytes every time.

    `provenance` is written by name; a name is an XML name, a value any text.
    """
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    packet = xmp(provenance)
    if image_format == "png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(_XMP_CHUNK, packet)
        image.save(buffer, "PNG", pnginfo=text)
    else:
        image.save(buffer, image_format.upper(), quality=quality, xmp=packet.encode())
    return buffer.getvalue()


def xmp(provenance: Mapping[str, object]) -> str:
    """The XMP packet of an image made as `provenance` says."""
    fields = "\n".join(
        f"   <sd:{name}>{escape(_xml_text(str(value)))}</sd:{name}>" for name, value in provenance.items()
    )
    return _PACKET.format(namespace=NAMESPACE, source_type=SOURCE_TYPE, fields=fields)


def read_provenance(encoded: bytes) -> dict[str, str]:
    """What an image that `encode` made says of itself. Raises `ValueError` if it is none, or not whole."""
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a whole image: {error}") from None
    packet = image.info.get(_XMP_CHUNK) or image.info.get("xmp", b"")
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    return {name: unescape(value) for name, value in _FIELD.findall(text)}


def contact_sheet(
    pictures: Sequence[Image.Image], columns: int, edge: int = 256, captions: Sequence[str] | None = None
) -> Image.Image:
    """All `pictures` on one sheet, row by row, each fitted into a square of `edge` pixels, captions below."""
    rows, height = -(-len(pictures) // columns), edge + (3 * edge // 8 if captions else 0)
    sheet = Image.new("RGB", (columns * edge, rows * height), "white")
    for number, picture in enumerate(pictures):
        fitted = picture.convert("RGB").resize(_fit(picture.size, edge), Image.Resampling.LANCZOS)
        left, top = number % columns * edge, number // columns * height
        sheet.paste(fitted, (left + (edge - fitted.width) // 2, top + (edge - fitted.height) // 2))
        if captions:
            _write(sheet, captions[number], (left + edge // 2, top + edge + 3), font_size=edge / 14)
    return sheet


def _write(sheet: Image.Image, caption: str, at: tuple[int, int], font_size: float) -> None:
    """`caption` on at most three lines, the middle of the first one's top `at`."""
    text, font = "\n".join(textwrap.wrap(caption, 26, max_lines=3)), ImageFont.load_default(font_size)
    ImageDraw.Draw(sheet).multiline_text(at, text, "black", font, "ma", align="center")


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures, in dB; infinite if they are equal."""
    error = np.square(one.astype(float) - other.astype(float)).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _fit(size: tuple[int, int], edge: int) -> tuple[int, int]:
    scale = edge / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _xml_text(text: str) -> str:
    """`text` without the control characters that XML 1.0 cannot hold."""
    return "".join(
        c for c in text if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )
