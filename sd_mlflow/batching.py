"""How many images share a UNet call: as many as make it faster, and as memory has room for."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import psutil
import torch

#: Twice the images must be worth this much: smaller batches answer sooner.
_GAIN = 1.05
#: Calls of one size before its speed is believed: the first ones also lay out memory.
_TRIALS = 2
#: After so many calls of a size it and the next larger are measured anew: either may have had a bad moment.
_AGAIN = 100


class BatchSizer:
    """Doubles the batch while that pays. `most`: images a call may take; speeds are kept by kind of image."""

    def __init__(self, most: int, device: torch.device) -> None:
        self._most = most
        self._device = device
        self._speeds: dict[tuple[Hashable, int], list[float]] = {}
        self._calls: Counter[tuple[Hashable, int]] = Counter()
        self._bytes: dict[Hashable, int] = {}

    def size(self, kind: Hashable, waiting: int) -> int:
        """Of `waiting` images of one kind, how many the next call takes: at least 1."""
        most = min(waiting, self._most)
        size = 1
        while 2 * size <= most:
            if not self._known(kind, size):
                return size
            if not self._known(kind, 2 * size):
                return 2 * size if self._has_room(kind, 2 * size) else size
            if max(self._speeds[kind, 2 * size]) < _GAIN * max(self._speeds[kind, size]):
                return size
            size *= 2
        return most if size > 1 else 1

    @contextmanager
    def timing(self, kind: Hashable, images: int) -> Iterator[None]:
        """Around a call for `images`: its speed is taken, unless it is known; then no device is waited for."""
        size = 1 << (images.bit_length() - 1)  # speeds are kept by powers of two
        self._calls[kind, size] += 1
        if self._calls[kind, size] % _AGAIN == 0:
            self._speeds.pop((kind, size), None)
            self._speeds.pop((kind, 2 * size), None)
        if self._known(kind, size):
            yield
            return
        self._synchronize()
        began = time.perf_counter()
        yield
        self._synchronize()
        self._speeds.setdefault((kind, size), []).append(images / (time.perf_counter() - began))
        if kind not in self._bytes:
            self._bytes[kind] = self._peak() // images

    def shrink(self, images: int) -> None:
        """Remember that memory did not suffice for `images`: never again so many."""
        self._most = max(1, images // 2)

    def _known(self, kind: Hashable, size: int) -> bool:
        return len(self._speeds.get((kind, size), [])) >= _TRIALS

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _has_room(self, kind: Hashable, images: int) -> bool:
        """Whether half of the free memory holds what `images` take beyond the model."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
        else:
            free = psutil.virtual_memory().available
        return images * self._bytes[kind] < free / 2

    def _peak(self) -> int:
        """Bytes that the calls so far took at most, beyond what stays."""
        if self._device.type == "cuda":
            most: int = torch.cuda.max_memory_allocated(self._device)
            stays: int = torch.cuda.memory_allocated(self._device)
        else:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            stays = psutil.Process().memory_info().rss
        return max(0, most - stays)
