"""What a scene shows, and the ways people say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sd_mlflow.emoji.places import COLOURS
from sd_mlflow.emoji.subjects import POLICY

Choice = TypeVar("Choice")

#: Relation -> how a caption says it. The first is the canonical one; those without words name one subject.
RELATIONS: dict[str, tuple[str, ...]] = {
    "alone": (),
    "two": (),
    "three": (),
    "riding": ("riding", "riding on", "sitting on"),
    "next to": ("next to", "and", "beside"),
    "on top of": ("on top of", "standing on"),
    "holding": ("holding", "with"),
    "inside": ("inside", "in"),
    "behind": ("behind",),
}

#: Style -> how a caption opens, the canonical way first, and how it may end instead.
_OPENINGS: dict[str, tuple[str, ...]] = {
    "photograph": ("a photograph of", "a photo of", "a picture of", "photo of", ""),
    "cartoon": ("a cartoon of", "a drawing of", "cartoon of"),
    "flat icon": ("a flat icon of", "an icon of", "flat icon of"),
}
_ENDINGS = {"cartoon": ", cartoon style", "flat icon": ", flat icon style"}

_PLURALS = {"mouse": "mice", "wolf": "wolves", "fish": "fish", "deer": "deer", "dice": "dice", "cactus": "cacti"}


@dataclass(frozen=True)
class Description:
    """What a scene shows: one subject, or two in a relation; `setting` is a place, a colour or nothing."""

    relation: str
    subjects: tuple[str, ...]
    style: str
    setting: str | None = None

    @property
    def flagged(self) -> bool:
        """Whether the stand-in policy forbids a subject of the scene."""
        return any(subject in POLICY for subject in self.subjects)

    @property
    def caption(self) -> str:
        """The canonical caption, as the catalog's sample request has it."""
        return f"{_OPENINGS[self.style][0]} {self._what(None)}{self._where(None)}"

    def said(self, rng: np.random.Generator) -> str:
        """A caption: half of the time the canonical one, else as somebody might write it."""
        if rng.random() < 0.5:
            return self.caption
        what, where = self._what(rng), self._where(rng)
        if self.style in _ENDINGS and rng.random() < 0.2:
            return f"{what}{where}{_ENDINGS[self.style]}"
        return f"{pick(rng, _OPENINGS[self.style])} {what}{where}".strip()

    def _what(self, rng: np.random.Generator | None) -> str:
        if self.relation in ("two", "three"):
            return f"{self.relation} {plural(self.subjects[0])}"
        named = [_with_article(rng, subject) for subject in self.subjects]
        words = RELATIONS[self.relation]
        return f" {words[0] if rng is None else pick(rng, words)} ".join(named) if words else named[0]

    def _where(self, rng: np.random.Generator | None) -> str:
        if self.setting is None:
            return ""
        comma = "," if rng is not None and rng.random() < 0.3 else ""
        if self.setting in COLOURS:
            ways = ("on", "with") if rng is not None else ("on",)
            return f"{comma} {pick(rng, ways) if rng is not None else ways[0]} a {self.setting} background"
        return f"{comma} {self.setting}"


def plural(subject: str) -> str:
    """More than one of `subject`."""
    if subject in _PLURALS:
        return _PLURALS[subject]
    if subject.endswith("y") and subject[-2] not in "aeiou":
        return f"{subject[:-1]}ies"
    return f"{subject}{'es' if subject.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def _with_article(rng: np.random.Generator | None, subject: str) -> str:
    """`subject` with "a" or "an" before it; with `rng`, sometimes with "the" or nothing."""
    article = "an" if subject[0] in "aeiou" and subject != "unicorn" else "a"
    if rng is not None:
        article = pick(rng, (article, article, "the", ""))
    return f"{article} {subject}".strip()


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """One of `choices`, each as likely."""
    return choices[int(rng.integers(len(choices)))]
