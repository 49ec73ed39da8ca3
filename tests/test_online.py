"""POST /score, over HTTP, on Azure's real inference server with the real scoring script."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from conftest import SAMPLE, Answer, decode, post
from PIL import Image

from sd_mlflow import checkpoint, errors, packaging
from sd_mlflow.demo import free_port
from sd_mlflow.images import psnr
from sd_mlflow.scoring.local import ServerError, serving

CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("request_cases.jsonl").read_text(encoding="utf-8").splitlines()
]
PROMPT = "a photograph of a horse"
CELLS = {"generated_images", "nsfw_content_detected"}


def ask(*prompts: str, **params: Any) -> dict[str, Any]:
    return {"input_data": list(prompts), "params": params}


def only_image(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    ((image,),) = (record["generated_images"] for record in answer.body)
    return decode(image)


def assert_refused(answer: Answer, status: int, says: str = "", row: int | None = None) -> None:
    """The contract's error object, its code of that status, and nothing of the inside of the server."""
    assert answer.status == status, answer.body
    error = answer.body["error"]
    assert answer.body == {"error": error}
    assert error.keys() == {"code", "message"} | ({"row"} if row is not None else set())
    assert error.get("row") == row
    assert getattr(errors, error["code"]).status == status
    assert re.search(says, error["message"]), error["message"]
    assert not re.search(r"Traceback|\.py\b|site-packages|/tmp|object at", error["message"])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_case_is_answered_as_it_says(azure_server: str, case: dict[str, Any]) -> None:
    answer = post(f"{azure_server}/score", case["raw"].encode() if "raw" in case else case["body"])
    if case["status"] != 200:
        assert_refused(answer, case["status"], case.get("says", ""), case.get("row"))
        return
    assert answer.status == 200, answer.body
    assert len(answer.body) == case["records"]
    assert all(record.keys() == CELLS for record in answer.body)
    images = [decode(image) for record in answer.body for image in record["generated_images"]]
    flags = [flag for record in answer.body for flag in record["nsfw_content_detected"]]
    assert len(images) == len(flags) == case["images"]
    assert set(flags) <= {"True", "False"}


def test_the_sample_byte_for_byte_is_one_record_of_two_pngs_and_two_flags(azure_server: str) -> None:
    answer = post(f"{azure_server}/score", SAMPLE)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    (record,) = answer.body
    assert list(record) == ["generated_images", "nsfw_content_detected"]
    assert [type(flag) for flag in record["nsfw_content_detected"]] == [str, str]
    assert len(record["generated_images"]) == 2
    for image in record["generated_images"]:
        picture = Image.open(io.BytesIO(base64.b64decode(image, validate=True)))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (128, 128))


def test_metadata_comes_only_when_asked_for_and_its_seed_makes_the_image_again(azure_server: str) -> None:
    (record,) = post(f"{azure_server}/score", ask(PROMPT, num_inference_steps=2, return_metadata=True)).body
    assert record.keys() > CELLS
    (image,), (seed,) = record["generated_images"], record["seed"]
    (again,) = post(f"{azure_server}/score", ask(PROMPT, num_inference_steps=2, seed=seed)).body
    assert again["generated_images"] == [image]


@pytest.mark.parametrize("opened", [b"", b'{"input_data": '], ids=["alone", "as input_data"])
def test_deeply_nested_json_is_refused(azure_server: str, opened: bytes) -> None:
    body = opened + b"[" * 100_000 + b"]" * 100_000 + b"}" * bool(opened)
    assert_refused(post(f"{azure_server}/score", body), 400, "not JSON")


@pytest.mark.parametrize("size", [4 * 1024**2 + 1, 32 * 1024**2], ids=["by a byte", "by far"])
def test_a_body_over_the_limit_is_refused_though_the_client_sends_it_whole(azure_server: str, size: int) -> None:
    assert_refused(post(f"{azure_server}/score", b" " * size), 413, "longer than the 4194304 bytes")


def test_a_prompt_of_too_many_characters_is_refused_before_it_is_tokenized(azure_server: str) -> None:
    answer = post(f"{azure_server}/score", ask(PROMPT, "x" * 4001))
    assert_refused(answer, 413, "characters of text_prompt: 4001, at most 4000", row=1)


def test_bytes_that_are_no_utf_8_are_refused(azure_server: str) -> None:
    assert_refused(post(f"{azure_server}/score", b'{"input_data": ["\xff\xfe"]}'), 400, "not JSON")


def test_a_long_value_is_not_repeated_whole_in_the_error(azure_server: str) -> None:
    answer = post(f"{azure_server}/score", ask(PROMPT, scheduler="x" * 100_000))
    assert_refused(answer, 400, "scheduler must be one of")
    assert len(answer.body["error"]["message"]) < 1000


def test_only_post_is_scored(azure_server: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(f"{azure_server}/score", timeout=60)
    with refused.value as answer:
        assert_refused(Answer(answer.code, {}, json.loads(answer.read())), 400, "with POST, not GET")


def test_the_health_route_answers_while_a_long_request_runs(azure_server: str) -> None:
    with ThreadPoolExecutor() as pool:
        long = pool.submit(post, f"{azure_server}/score", ask(PROMPT, num_inference_steps=150))
        for _ in range(5):
            with urllib.request.urlopen(azure_server, timeout=60) as health:
                assert health.status == 200
        assert not long.done()
        assert long.result().status == 200


def test_concurrent_clients_get_the_images_that_they_get_alone(azure_server: str) -> None:
    url = f"{azure_server}/score"
    bodies = [
        ask(f"a photograph of a {what}", seed=i, num_inference_steps=2 + i)
        for i, what in enumerate(("horse", "cat", "dog", "rocket"))
    ]
    alone = [only_image(post(url, body)) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: only_image(post(url, body)), bodies * 2))
    for expected, image in zip(alone * 2, together, strict=True):
        assert psnr(image, expected) >= 45


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with room for one image at a time, 5 s, and a checker that flags every image."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("strict")
    folder, package = root / "checkpoint", root / "package"
    shutil.copytree(checkpoint.find(checkpoint.SD_EMOJI).folder, folder)
    weights = folder / "safety_checker" / "model.safetensors"
    tensors = load_file(weights)
    tensors["concept_embeds_weights"].fill_(-2)  # below any cosine
    save_file(tensors, weights, {"format": "pt"})
    packaging.package(checkpoint.find(str(folder)), package, dtype="bfloat16")
    environment = {
        "SD_MLFLOW_MAX_QUEUED_IMAGES": "1",
        "SD_MLFLOW_DEADLINE_SECONDS": "5",
        "SD_MLFLOW_DEVICE": "cpu",
    }
    with serving(package, free_port(), environment=environment, log=root / "server.log") as url:
        yield url


def test_past_the_deadline_is_504_and_past_the_queue_is_429_with_retry_after(strict_server: str) -> None:
    endless = ask(PROMPT, num_inference_steps=150, height=512, width=512, scheduler="HeunDiscreteScheduler")
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda body: post(f"{strict_server}/score", body), [endless] * 2))
    full, late = sorted(both, key=lambda answer: answer.status)
    assert_refused(full, 429, "1 images are in work")
    assert int(full.headers["Retry-After"]) > 0
    assert_refused(late, 504, "longer than the 5 s", row=0)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("?safety_checker=false&disable_safety_checker=true", {}),
        ("", {"X-Safety-Checker": "off", "azureml-disable-safety-checker": "true", "X-Content-Safety": "0"}),
    ],
    ids=["nothing", "query", "headers"],
)
def test_a_flagged_image_is_black_whatever_is_said_beside_the_body(
    strict_server: str, query: str, headers: dict[str, str]
) -> None:
    body = json.dumps(ask(PROMPT, num_inference_steps=1)).encode()
    request = urllib.request.Request(f"{strict_server}/score{query}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        (record,) = json.loads(response.read())
    assert record["nsfw_content_detected"] == ["True"]
    image = decode(record["generated_images"][0])
    assert image.shape == (128, 128, 3)
    assert not np.any(image)


def test_a_server_of_a_changed_package_does_not_start_and_says_which_file(
    emoji_package: Path, tmp_path: Path
) -> None:
    package, log = tmp_path / "package", tmp_path / "server.log"
    shutil.copytree(emoji_package, package)
    weights = package / packaging.CHECKPOINT_PATH / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ServerError, match="stopped"), serving(package, free_port(), log=log):
        pass
    assert "vae/diffusion_pytorch_model.safetensors is not the file that was packaged" in log.read_text()
