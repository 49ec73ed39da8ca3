"""Many callers at once, on the real server: does anyone wait longer than need be?"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sd_mlflow.demo import free_port, post
from sd_mlflow.model import TextToImage
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.scoring.local import loopback, serving
from sd_mlflow.settings import Settings

_HEALTH_EVERY = 0.05


def concurrency(package: Path, clients: int, steps: int, log: Path) -> dict[str, float]:
    """`clients` requests of `steps` denoising steps at once and in sequence; a short request beside a long one.

    `package` is served by Azure's inference server, whose output goes to `log`.
    """
    with serving(package, free_port(), threads=2 * clients, log=log) as url:

        def draw(seed: int, count: int = steps) -> None:
            params = {"seed": seed, "num_inference_steps": count}
            body = {"input_data": ["a photograph of a lion"], "params": params}
            post(f"{url}/score", json.dumps(body).encode())

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(draw, range(clients)))  # warm: the engine learns which batches pay
            sequence = _seconds(lambda: list(map(draw, range(clients))))
            with _watching(url) as slowest_health:
                together = _seconds(lambda: list(pool.map(draw, range(clients))))
        short, remaining = _short_beside_long(lambda count: draw(0, count))
    return {
        "clients": clients,
        "num_inference_steps": steps,
        "together_over_sequence": together / sequence,
        "slowest_health_seconds": max(slowest_health),
        "short_over_remaining_of_long": short / remaining,
    }


def throughput(folder: Path, device: str, callers: Sequence[int], **request: Any) -> dict[str, float]:
    """Images a second of the checkpoint `folder` on `device`, by how many are asked for at once."""
    settings = Settings(device=device, max_batch_size=64, deadline_seconds=3600)
    with closing(TextToImage(folder, settings)) as model:

        def draw(count: int) -> None:
            requests = [ImageRequest("a photograph of a lion", seed, **request) for seed in range(count)]
            for future in model.submit(requests):
                future.result()

        draw(max(callers))  # warm: the engine learns which batches pay
        return {str(count): count / _seconds(partial(draw, count)) for count in callers}


def _short_beside_long(draw: Callable[[int], None]) -> tuple[float, float]:
    """Seconds that 5 steps take while 50 are under way, and that the 50 then still take."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(draw, 50)
        time.sleep(0.1)
        began = time.perf_counter()
        draw(5)
        short = time.perf_counter() - began
        long.result()
        return short, time.perf_counter() - began


@contextmanager
def _watching(url: str) -> Iterator[list[float]]:
    """Ask for the server's health all the while: yields how long each answer took, in seconds."""
    taken: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(_HEALTH_EVERY):
            began = time.perf_counter()
            with loopback.open(url, timeout=60):
                taken.append(time.perf_counter() - began)

    watcher = threading.Thread(target=ask)
    watcher.start()
    try:
        yield taken
    finally:
        done.set()
        watcher.join()


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
