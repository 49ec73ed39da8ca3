"""Who rides what: pairs that scenes show, and pairs held out, to see whether the model can compose."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from sd_mlflow.emoji.subjects import MOUNTS, RIDERS

Pair = tuple[str, str]

#: The pairs of the catalog's sample request. Never held out.
SAMPLE_PAIRS: tuple[Pair, ...] = (("astronaut", "horse"), ("cat", "horse"))

#: A line "rider,mount" for each pair that no scene shows.
HELD_OUT_FILE = Path(__file__).with_name("held-out-pairs.csv")
_HELD_OUT, _SEED = 120, 2026


def choose_held_out() -> tuple[Pair, ...]:
    """The held-out pairs, as `_SEED` chooses them: of every rider and of every mount, most stay to be seen."""
    pairs = [pair for pair in product(RIDERS, MOUNTS) if pair not in SAMPLE_PAIRS]
    chosen = np.random.default_rng(_SEED).permutation(len(pairs))[:_HELD_OUT]
    return tuple(pairs[number] for number in sorted(chosen))


def held_out_pairs() -> tuple[Pair, ...]:
    """The held-out pairs, as the file lists them."""
    lines = HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
    return tuple((rider, mount) for rider, mount in (line.split(",") for line in lines))


def seen_pairs() -> tuple[Pair, ...]:
    """Every other pair of a rider and a mount."""
    held_out = set(held_out_pairs())
    return tuple(pair for pair in product(RIDERS, MOUNTS) if pair not in held_out)
