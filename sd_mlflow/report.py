"""What a batch run came to: a line of figures, and contact sheets that one can look at and search."""

from __future__ import annotations

import base64
import html
import io
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sd_mlflow.bulk import Prediction
from sd_mlflow.images import contact_sheet

#: Pictures on a contact sheet: the first ones, so that neither sheet nor memory grows with the run.
_ON_SHEET = 400
_COLUMNS, _EDGE = 20, 128

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Contact sheet</title>
<style>
 body {{ font: 14px system-ui, sans-serif; margin: 1.5rem; background: #f6f6f4; color: #222 }}
 input, select {{ font: inherit; padding: .35rem .6rem; margin: 0 .5rem 1rem 0 }}
 main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px }}
 figure {{ margin: 0; background: #fff; border-radius: 8px; padding: 8px; box-shadow: 0 1px 3px #0002 }}
 img {{ width: 100%; border-radius: 4px }}
 figcaption {{ overflow-wrap: anywhere; max-height: 5.5em; overflow: auto }}
 small {{ color: #666 }}
</style>
<h1>{title}</h1>
<p>{line}</p>
<input id="words" type="search" placeholder="prompt or seed" aria-label="prompt or seed">
<select id="flag" aria-label="flag"><option value="">all</option><option>False</option><option>True</option>
<option>NotChecked</option></select> <span id="shown"></span>
<main>{figures}</main>
<script>
 const words = document.getElementById("words"), flag = document.getElementById("flag");
 function show() {{
  let shown = 0;
  for (const figure of document.querySelectorAll("figure")) {{
   const fits = figure.innerText.toLowerCase().includes(words.value.toLowerCase())
     && (!flag.value || figure.dataset.flag === flag.value);
   figure.hidden = !fits; shown += fits;
  }}
  document.getElementById("shown").textContent = shown + " shown";
 }}
 words.oninput = flag.oninput = show; show();
</script>
</html>
"""


@dataclass
class Summary:
    """The figures of a run, and its first pictures."""

    done: int = 0
    flagged: int = 0
    failed: int = 0
    images: int = 0
    _began: float = field(default_factory=time.monotonic)
    _figures: list[tuple[str, int, str, bytes]] = field(default_factory=list)

    def add(self, prediction: Prediction, out: Path) -> None:
        """Count a prediction, and keep a thumbnail of each of its images while there is room."""
        if prediction.error:
            self.failed += 1
            return
        self.done += 1
        self.images += len(prediction.images)
        self.flagged += prediction.nsfw_content_detected.count("True")
        for name, seed, flag in zip(
            prediction.images, prediction.seed, prediction.nsfw_content_detected, strict=True
        ):
            if len(self._figures) < _ON_SHEET:
                self._figures.append((prediction.text_prompt or "", seed, flag, _thumbnail(out / name)))

    def line(self) -> str:
        """The figures in one line."""
        return f"{self.done} done, {self.flagged} flagged, {self.failed} failed"

    def rate(self) -> str:
        """How fast it went, images that were there already included."""
        return f"{60 * self.images / max(1e-9, time.monotonic() - self._began):.0f} images a minute"

    def write_sheets(self, out: Path) -> None:
        """Write `contact-sheet.png` and the page `contact-sheet.html`, which needs no other file."""
        if not self._figures:
            return
        pictures = [Image.open(io.BytesIO(encoded)) for *_, encoded in self._figures]
        contact_sheet(pictures, min(_COLUMNS, len(pictures)), _EDGE).save(out / "contact-sheet.png")
        figures = "\n".join(
            f'<figure data-flag="{flag}"><img alt="" src="data:image/webp;base64,'
            f'{base64.b64encode(encoded).decode()}"><figcaption>{html.escape(prompt)}<br>'
            f"<small>seed {seed} · flag {flag}</small></figcaption></figure>"
            for prompt, seed, flag, encoded in self._figures
        )
        shown = "" if len(self._figures) == self.images else f" The first {len(self._figures)} are here."
        page = _PAGE.format(title=html.escape(out.name), line=f"{self.line()}.{shown}", figures=figures)
        (out / "contact-sheet.html").write_text(page, encoding="utf-8")


def _thumbnail(path: Path) -> bytes:
    """The image at `path`, as a WebP of at most `_EDGE` pixels."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
        image.convert("RGB").save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
