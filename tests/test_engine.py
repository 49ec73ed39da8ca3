"""The engine: the same image alone and in company, and callers that leave, come late or are too many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import change, converted, emoji_copy
from PIL import Image

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.engine import Engine
from sd_mlflow.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidParameter,
    LimitExceeded,
    NotReady,
    PackageError,
    QueueFull,
    SafetyUnavailable,
)
from sd_mlflow.images import psnr
from sd_mlflow.jobs import Caller
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.pipeline import Pipeline
from sd_mlflow.progress import StepProgress
from sd_mlflow.settings import Settings

HORSE = ImageRequest("a photograph of an astronaut riding a horse", seed=1, num_inference_steps=12)
OTHERS = [
    ImageRequest("a cartoon of a cat", seed=2, num_inference_steps=5, scheduler="EulerDiscreteScheduler"),
    ImageRequest("a lion at night", seed=3, num_inference_steps=9, guidance_scale=1.0),
    ImageRequest("a whale " * 60, seed=4, num_inference_steps=3, scheduler="DDIMScheduler"),
    ImageRequest("a robot", seed=5, num_inference_steps=4, height=64, width=192),
    ImageRequest("a frog", seed=6, num_inference_steps=20, scheduler="UniPCMultistepScheduler"),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest) -> Pipeline:
    return pipeline.load(find(SD_EMOJI).folder, "cpu", request.param)


def engine_of(loaded: Pipeline, **settings: object) -> Engine:
    return Engine(lambda _: loaded, Settings.model_validate(settings))


@pytest.fixture(scope="module")
def engine(loaded: Pipeline) -> Iterator[Engine]:
    running = engine_of(loaded)
    yield running
    running.close()


def agree(one: np.ndarray, other: np.ndarray, loaded: Pipeline) -> bool:
    """Within 1/255 in float32, and 45 dB in the dtype it runs in."""
    largest = int(np.abs(one.astype(int) - other.astype(int)).max())
    return largest <= 1 if loaded.dtype is torch.float32 else psnr(one, other) >= 45


def test_an_image_is_the_same_alone_and_in_a_mixed_batch(engine: Engine, loaded: Pipeline) -> None:
    alone = [engine.generate([request])[0].pixels for request in (HORSE, *OTHERS)]
    together = [image.pixels for image in engine.generate([HORSE, *OTHERS])]
    for one, other in zip(alone, together, strict=True):
        assert agree(one, other, loaded)


def test_a_batch_of_one_gives_the_same_bytes_again(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_batch_size=1)
    first, second = running.generate([HORSE] * 2)
    running.close()
    assert np.array_equal(first.pixels, second.pixels)


def test_eight_concurrent_callers_get_the_image_that_one_gets(engine: Engine, loaded: Pipeline) -> None:
    alone = engine.generate([HORSE])[0].pixels
    with ThreadPoolExecutor(8) as callers:
        images = list(callers.map(lambda _: engine.generate([HORSE])[0].pixels, range(8)))
    assert all(agree(alone, image, loaded) for image in images)


def test_different_seeds_are_different_images(engine: Engine) -> None:
    one, other = engine.generate([OTHERS[0], ImageRequest("a cartoon of a cat", seed=99, num_inference_steps=5)])
    assert not np.array_equal(one.pixels, other.pixels) or one.verdict.value == other.verdict.value == "True"


def test_images_have_the_size_asked_for(engine: Engine) -> None:
    (image,) = engine.generate([OTHERS[3]])
    assert image.pixels.shape == (64, 192, 3)
    (image,) = engine.generate([OTHERS[0]])
    assert image.pixels.shape == (128, 128, 3)


def test_without_guidance_the_unet_sees_each_image_once(loaded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    hook = loaded.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    running = engine_of(loaded)
    running.generate([ImageRequest("a cat", seed=0, num_inference_steps=2, guidance_scale=1.0)])
    running.generate([ImageRequest("a cat", seed=0, num_inference_steps=2, guidance_scale=1.5)])
    hook.remove()
    running.close()
    assert sizes == [1] * 3 + [2] * 3  # PNDM does one step more than asked for


def test_a_full_queue_refuses_and_says_when_to_ask_again(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_queued_images=2)
    slow = ImageRequest("a cat", seed=0, num_inference_steps=150)
    futures = running.submit([slow, slow])
    with pytest.raises(QueueFull, match="2 images are in work") as refused:
        running.submit([HORSE])
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 0
    running.close()
    assert all(future.done() for future in futures)


def test_more_images_than_the_queue_holds_are_refused_for_good(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_queued_images=2)
    with pytest.raises(LimitExceeded, match="3 images at once, at most 2"):
        running.submit([HORSE] * 3)
    running.close()


def test_a_cancelled_image_makes_room(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_queued_images=1)
    (future,) = running.submit([ImageRequest("a cat", seed=0, num_inference_steps=150)])
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    assert len(running.generate([OTHERS[0]])) == 1
    running.close()


def test_an_image_that_is_late_is_not_finished(loaded: Pipeline) -> None:
    running = engine_of(loaded, deadline_seconds=0.05)
    with pytest.raises(DeadlineExceeded, match=r"longer than the 0\.05 s"):
        running.generate([ImageRequest("a cat", seed=0, num_inference_steps=150)] * 4)
    running.close()


def test_a_closed_engine_says_so(loaded: Pipeline) -> None:
    running = engine_of(loaded)
    (waiting,) = running.submit([ImageRequest("a cat", seed=0, num_inference_steps=150)])
    running.close()
    with pytest.raises(NotReady):
        waiting.result(timeout=60)
    with pytest.raises(NotReady):
        running.generate([HORSE])
    assert not [thread for thread in threading.enumerate() if thread is running._owner]


def test_requests_are_checked_before_they_are_queued(engine: Engine) -> None:
    with pytest.raises(LimitExceeded, match="text_prompt has 400 tokens") as refused:
        engine.generate([ImageRequest("cat " * 400, seed=0, row=3)])
    assert refused.value.row == 3
    with pytest.raises(LimitExceeded, match="negative_prompt"):
        engine.generate([ImageRequest("cat", negative_prompt="cat " * 400, seed=0)])
    with pytest.raises(InvalidParameter, match="LCMScheduler"):
        engine.generate([ImageRequest("cat", seed=0, scheduler="LCMScheduler", num_inference_steps=60)])


def test_a_checker_that_cannot_run_lets_no_image_out(loaded: Pipeline) -> None:
    class Broken(torch.nn.Module):
        """Stands in for a checker that cannot run: no real one fails on demand."""

    running = engine_of(replace(loaded, safety_checker=Broken()))
    with pytest.raises(SafetyUnavailable):
        running.generate([OTHERS[0]])
    running.close()


def test_a_step_that_fails_fails_its_images_and_no_others(loaded: Pipeline) -> None:
    running = engine_of(loaded)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = loaded.unet.register_forward_pre_hook(fail)
    with pytest.raises(GenerationFailed) as refused:
        running.generate([OTHERS[0]])
    hook.remove()
    assert "memory" not in refused.value.message
    assert len(running.generate([OTHERS[0]])) == 1
    running.close()


def test_an_image_that_is_not_a_number_is_refused(loaded: Pipeline) -> None:
    running = engine_of(loaded)
    hook = loaded.vae.decoder.register_forward_hook(lambda *results: results[-1] * float("nan"))
    with pytest.raises(GenerationFailed, match="not a number"):
        running.generate([OTHERS[0]])
    hook.remove()
    running.close()


def test_images_that_join_leave_and_are_cancelled_disturb_no_other(engine: Engine, loaded: Pipeline) -> None:
    requests = [HORSE, *OTHERS, replace(HORSE, preset="fast"), replace(HORSE, preset="draft", guidance_scale=3.0)]
    alone = [engine.generate([request])[0].pixels for request in requests]
    begun = threading.Event()
    (first,) = engine.submit([replace(HORSE, num_inference_steps=40, seed=9)], Caller(lambda _: begun.set()))
    assert begun.wait(60)
    joining = [engine.submit([request])[0] for request in requests]
    (leaving,) = engine.submit([replace(HORSE, seed=8)])
    leaving.cancel()
    first.cancel()
    for one, other in zip(alone, joining, strict=True):
        assert agree(one, other.result(120).pixels, loaded)


def test_a_short_request_is_done_long_before_the_long_one_that_was_there_first(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_batch_size=1)
    order: list[str] = []
    (long,) = running.submit(
        [ImageRequest("a cat", seed=0, num_inference_steps=50)], Caller(lambda _: order.append("long"))
    )
    (short,) = running.submit(
        [ImageRequest("a dog", seed=0, num_inference_steps=5, scheduler="DDIMScheduler")],
        Caller(lambda _: order.append("short")),
    )
    short.result(120)
    long.result(120)
    running.close()
    last = len(order) - order[::-1].index("short")
    assert order.count("short") == 5
    assert order[:last].count("long") <= 10


def test_a_caller_of_many_images_takes_no_more_turns_than_a_caller_of_one(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_batch_size=1)
    order: list[str] = []
    request = ImageRequest("a cat", seed=0, num_inference_steps=8, scheduler="DDIMScheduler")
    many = running.submit(
        [replace(request, seed=seed) for seed in range(6)], Caller(lambda _: order.append("many"))
    )
    (one,) = running.submit([request], Caller(lambda _: order.append("one")))
    one.result(120)
    [future.result(120) for future in many]
    running.close()
    last = len(order) - order[::-1].index("one")
    assert order[:last].count("many") <= 10


def test_the_images_of_one_caller_are_made_one_after_the_other(loaded: Pipeline) -> None:
    running = engine_of(loaded, max_batch_size=1)
    seeds: list[int] = []
    caller = Caller(lambda done: seeds.append(done.request.seed))
    request = ImageRequest("a cat", seed=0, num_inference_steps=4, scheduler="DDIMScheduler")
    futures = [running.submit([replace(request, seed=seed)], caller)[0] for seed in range(3)]
    [future.result(120) for future in futures]
    running.close()
    assert seeds == [0] * 4 + [1] * 4 + [2] * 4


def test_a_watcher_sees_every_step_and_can_look_at_the_picture(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    previews: list[np.ndarray] = []

    def watch(done: StepProgress) -> None:
        seen.append((done.step, done.steps))
        if done.step == 4:
            previews.append(done.preview())

    request = ImageRequest(
        "a cartoon of a cat on the grass", seed=2, num_inference_steps=5, scheduler="DDIMScheduler"
    )
    (image,) = engine.generate([request], watch)
    assert seen == [(step, 5) for step in range(1, 6)]
    small = np.asarray(Image.fromarray(image.pixels).resize((16, 16), Image.Resampling.BOX))
    assert previews[0].shape == (16, 16, 3)
    assert psnr(previews[0], small) > 15


def test_a_watcher_that_fails_costs_nobody_the_image(engine: Engine) -> None:
    def watch(_: StepProgress) -> None:
        raise RuntimeError("the terminal is gone")

    (image,) = engine.generate([OTHERS[0]], watch)
    assert image.pixels.any()


def test_a_preview_that_cannot_be_checked_is_withheld(loaded: Pipeline) -> None:
    class Broken(torch.nn.Module):
        """Stands in for a checker that cannot run: no real one fails on demand."""

    running = engine_of(replace(loaded, safety_checker=Broken()))
    refused: list[Exception] = []

    def watch(done: StepProgress) -> None:
        try:
            done.preview()
        except SafetyUnavailable as error:
            refused.append(error)

    with pytest.raises(SafetyUnavailable):
        running.generate([OTHERS[0]], watch)
    running.close()
    assert refused


def test_an_image_that_overflows_in_float16_is_made_again_in_float32(tmp_path: Path) -> None:
    """A decoder whose first layer is scaled past float16's range: the norm behind it takes the scale out again."""

    def scale(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        large = {name for name in weights if name.startswith("decoder.conv_in.")}
        return {name: tensor.float() * (6e4 if name in large else 1) for name, tensor in weights.items()}

    folder = emoji_copy(tmp_path / "model")
    change(folder, "vae", scale)
    overflowing = converted(folder, tmp_path / "float16", "float16")
    dtypes: list[str] = []

    def load(dtype: str) -> Pipeline:
        dtypes.append(dtype)
        return pipeline.load(overflowing, "cpu", dtype)

    images = []
    for dtype in ("float16", "float32"):
        running = Engine(load, Settings(dtype=dtype))
        images += running.generate([OTHERS[0]])
        running.close()
    assert dtypes == ["float16", "float32", "float32"]
    assert psnr(images[0].pixels, images[1].pixels) > 45


def test_a_model_that_cannot_be_loaded_says_so_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        Engine(lambda dtype: pipeline.load(tmp_path, "cpu", dtype), Settings())


def test_images_are_the_same_where_finishing_overlaps_denoising(loaded: Pipeline) -> None:
    """As on a GPU: with a finisher, which an engine on a CPU does without."""
    alone = engine_of(loaded)
    expected = [image.pixels for image in alone.generate([HORSE, *OTHERS])]
    alone.close()
    running = engine_of(loaded)
    running._finisher = ThreadPoolExecutor(1)
    for _ in range(2):
        images = running.generate([HORSE, *OTHERS])
        assert all(agree(one, image.pixels, loaded) for one, image in zip(expected, images, strict=True))
    assert len(running.generate([OTHERS[0]])) == 1
    running.close()


def test_a_batch_that_memory_does_not_hold_is_made_smaller(loaded: Pipeline) -> None:
    running = engine_of(loaded)
    refused: list[int] = []

    def refuse(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError("as a GPU says it")

    hook = loaded.unet.register_forward_pre_hook(refuse)
    images = running.generate([replace(OTHERS[0], seed=seed) for seed in range(3)])
    hook.remove()
    running.close()
    assert refused == [4]
    assert len(images) == 3
