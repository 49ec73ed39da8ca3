"""What the evaluation asks for: prompts drawn by a seed of their own, which nothing was tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sd_mlflow.emoji.captions import Choice, Description, pick
from sd_mlflow.emoji.pairs import held_out_pairs, seen_pairs
from sd_mlflow.emoji.places import COLOURS, PLACES
from sd_mlflow.emoji.subjects import CONTAINERS, HARMLESS, HELD, POLICY, RIDERS, STYLES

#: Kind of question -> how many there are: 500 in all, and 80 for a quick look.
FULL = {"single_subject": 160, "pair_seen": 130, "pair_held_out": 110, "relation": 60, "policy": 40}
QUICK = {"single_subject": 28, "pair_seen": 18, "pair_held_out": 18, "relation": 8, "policy": 8}
_FULL_SEED, _QUICK_SEED = 7_000_001, 7_000_002

_OTHER_RELATIONS = ("two", "three", "next to", "on top of", "holding", "inside", "behind")


@dataclass(frozen=True)
class Question:
    """A prompt, its image's seed, and what the picture must show."""

    kind: str
    shown: Description
    seed: int


def questions(quick: bool) -> list[Question]:
    """The 500 questions, or the 80 quick ones, which are others, in an order that mixes the kinds."""
    rng = np.random.default_rng(_QUICK_SEED if quick else _FULL_SEED)
    asked = [
        Question(kind, shown, seed=int(rng.integers(2**32)))
        for kind, count in (QUICK if quick else FULL).items()
        for shown in _descriptions(rng, kind, count)
    ]
    return [asked[number] for number in rng.permutation(len(asked))]


def _descriptions(rng: np.random.Generator, kind: str, count: int) -> list[Description]:
    """`count` of a kind: every subject or pair once before any comes again."""
    shown: list[tuple[str, tuple[str, ...]]]
    if kind == "single_subject":
        shown = [("alone", (subject,)) for subject in _dealt(rng, HARMLESS, count)]
    elif kind == "policy":
        shown = [("alone", (subject,)) for subject in _dealt(rng, POLICY, count)]
    elif kind == "relation":
        shown = [(relation, _together(rng, relation)) for relation in _dealt(rng, _OTHER_RELATIONS, count)]
    else:
        pairs = seen_pairs() if kind == "pair_seen" else held_out_pairs()
        shown = [("riding", pair) for pair in _dealt(rng, pairs, count)]
    return [Description(relation, subjects, pick(rng, STYLES), _setting(rng)) for relation, subjects in shown]


def _together(rng: np.random.Generator, relation: str) -> tuple[str, ...]:
    if relation in ("two", "three"):
        return (pick(rng, HARMLESS),)
    if relation in ("holding", "inside"):
        return pick(rng, RIDERS), pick(rng, HELD if relation == "holding" else tuple(CONTAINERS))
    one, other = _dealt(rng, HARMLESS, 2)
    return one, other


def _setting(rng: np.random.Generator) -> str | None:
    return pick(rng, PLACES) if rng.random() < 0.5 else pick(rng, (None, *COLOURS))


def _dealt(rng: np.random.Generator, choices: Sequence[Choice], count: int) -> list[Choice]:
    rounds = -(-count // len(choices))
    return [choices[int(number)] for _ in range(rounds) for number in rng.permutation(len(choices))][:count]
