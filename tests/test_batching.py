"""The batch's size follows what was measured; the speeds here are given, not taken."""

from __future__ import annotations

import pytest
import torch

from sd_mlflow import batching
from sd_mlflow.batching import BatchSizer

CPU = torch.device("cpu")


def learn(sizer: BatchSizer, waiting: int, seconds: dict[int, float]) -> list[int]:
    """The sizes that `sizer` chooses while calls of a size take `seconds`, by a clock that only they move."""
    chosen, now = [], [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching.time, "perf_counter", lambda: now[0])
        for _ in range(20):
            chosen.append(sizer.size("kind", waiting))
            with sizer.timing("kind", chosen[-1]):
                now[0] += seconds[chosen[-1]]
    return chosen


def test_the_batch_grows_while_that_pays() -> None:
    chosen = learn(BatchSizer(16, CPU), 8, {1: 1.0, 2: 1.2, 4: 1.6, 8: 2.4})
    assert chosen[:2] == [1, 1]
    assert chosen[-1] == 8


def test_the_batch_stays_small_where_company_does_not_pay() -> None:
    chosen = learn(BatchSizer(16, CPU), 8, {1: 1.0, 2: 1.98, 4: 3.9})
    assert set(chosen[4:]) == {1}


def test_the_batch_stops_growing_where_it_no_longer_pays() -> None:
    chosen = learn(BatchSizer(16, CPU), 16, {1: 1.0, 2: 1.2, 4: 2.39})
    assert set(chosen[6:]) == {2}


def test_a_batch_is_never_larger_than_allowed_or_waiting() -> None:
    assert max(learn(BatchSizer(3, CPU), 8, {1: 1.0, 2: 1.1, 3: 1.2})) == 3
    assert max(learn(BatchSizer(16, CPU), 5, {1: 1.0, 2: 1.1, 4: 1.2, 5: 1.3})) == 5


def test_a_size_that_was_slow_for_a_moment_gets_another_chance() -> None:
    sizer = BatchSizer(16, CPU)
    learn(sizer, 2, {1: 1.0, 2: 4.0})
    assert sizer.size("kind", 2) == 1
    for _ in range(6):
        chosen = learn(sizer, 2, {1: 1.0, 2: 1.2})
    assert chosen[-1] == 2


def test_kinds_are_measured_apart() -> None:
    sizer = BatchSizer(16, CPU)
    learn(sizer, 8, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3})
    assert sizer.size("another kind", 8) == 1


def test_after_memory_ran_out_half_as_many_are_the_most() -> None:
    sizer = BatchSizer(16, CPU)
    assert max(learn(sizer, 8, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3})) == 8
    sizer.shrink(8)
    assert sizer.size("kind", 8) == 4
    for _ in range(5):
        sizer.shrink(1)
    assert sizer.size("kind", 8) == 1


def test_the_batch_does_not_grow_past_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizer = BatchSizer(16, CPU)
    monkeypatch.setattr(sizer, "_peak", lambda: 10_000)
    monkeypatch.setattr(batching.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 50_000})())
    assert max(learn(sizer, 8, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3})) == 2
