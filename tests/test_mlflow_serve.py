"""The package under stock `mlflow models serve`, and loaded with `mlflow.pyfunc.load_model`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Answer, decode, post

from sd_mlflow.demo import free_port
from sd_mlflow.images import psnr

HORSE, CAT = "a photograph of a horse", "a photograph of a cat"
QUICK = {"num_inference_steps": 2, "seed": 3}
CELLS = {"generated_images", "nsfw_content_detected"}


@pytest.fixture(scope="session")
def mlflow_server(emoji_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `mlflow models serve`, as MLflow ships it, on the package."""
    folder, port = tmp_path_factory.mktemp("mlflow-server"), free_port()
    command = ["models", "serve", "-m", str(emoji_package), "--env-manager", "local", "-h", "127.0.0.1"]
    # MLflow looks for uvicorn on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "-p", str(port)],
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", process, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_group(process)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"mlflow models serve stopped:\n{log.read_text()}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """MLflow's server is a child of its command: end both, and wait until they are gone."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        pass


def predictions(server: str, **body: Any) -> list[dict[str, Any]]:
    answer = post(f"{server}/invocations", body)
    assert answer.status == 200, answer.body
    assert answer.body.keys() == {"predictions"}
    records: list[dict[str, Any]] = answer.body["predictions"]
    for record in records:
        assert record.keys() >= CELLS
        assert set(record["nsfw_content_detected"]) <= {"True", "False"}
    return records


BODIES: dict[str, dict[str, Any]] = {
    "dataframe_records": {"dataframe_records": [{"text_prompt": HORSE}, {"text_prompt": CAT}]},
    "dataframe_split": {"dataframe_split": {"columns": ["text_prompt"], "data": [[HORSE], [CAT]]}},
    "inputs as columns": {"inputs": {"text_prompt": [HORSE, CAT]}},
    "inputs as strings": {"inputs": [HORSE, CAT]},
    "instances as records": {"instances": [{"text_prompt": HORSE}, {"text_prompt": CAT}]},
    "instances as strings": {"instances": [HORSE, CAT]},
    "the catalog's column": {"dataframe_records": [{"prompt": HORSE}, {"prompt": CAT}]},
}


@pytest.fixture(scope="module")
def expected(mlflow_server: str) -> list[dict[str, Any]]:
    return predictions(mlflow_server, instances=[HORSE, CAT], params=QUICK)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_form_of_a_request_gets_the_same_record(
    mlflow_server: str, expected: list[dict[str, Any]], body: dict[str, Any]
) -> None:
    (record,) = predictions(mlflow_server, **body, params=QUICK)
    assert record.keys() == CELLS
    assert [decode(image).shape for image in record["generated_images"]] == [(128, 128, 3)] * 2
    assert [record] == expected


def test_csv_has_a_column_of_seeds_with_gaps(mlflow_server: str) -> None:
    # CSV carries no parameters, so this one runs the default steps.
    body = f'text_prompt,seed\n"{HORSE}, riding",3\n{CAT},\n'.encode()
    request = urllib.request.Request(f"{mlflow_server}/invocations", body, {"Content-Type": "text/csv"})
    with urllib.request.urlopen(request, timeout=300) as response:
        (record,) = json.loads(response.read())["predictions"]
    assert len(record["generated_images"]) == 2


def test_orient_records_is_one_record_a_row(mlflow_server: str, expected: list[dict[str, Any]]) -> None:
    rows = predictions(mlflow_server, instances=[HORSE, CAT], params=QUICK | {"orient": "records"})
    assert [row["generated_images"] for row in rows] == [[image] for image in expected[0]["generated_images"]]


def test_params_and_rows_decide_what_the_metadata_says(mlflow_server: str) -> None:
    rows = [{"text_prompt": HORSE, "seed": 11}, {"text_prompt": CAT, "seed": 5}]
    params = {"num_inference_steps": 1, "guidance_scale": 1, "scheduler": "DDIM", "return_metadata": True}
    (record,) = predictions(mlflow_server, dataframe_records=rows, params=params)
    assert record["seed"] == [11, 5]
    assert record["num_inference_steps"] == [1, 1]
    assert record["guidance_scale"] == [1.0, 1.0]
    assert record["scheduler"] == ["DDIMScheduler"] * 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"instances": [HORSE], "params": {"num_inference_steps": 900}},
            "num_inference_steps must be between 1 and 150, got 900",
        ),
        (
            {"dataframe_records": [{"txt_prompt": HORSE}]},
            "row 0: unknown column 'txt_prompt'; did you mean text_prompt?",
        ),
        ({"instances": [HORSE, "  "]}, "row 1: text_prompt must not be blank, got '  '"),
        ({"dataframe_records": [{"text_prompt": None}]}, "row 0: text_prompt must be a string, got None"),
        ({"inputs": HORSE}, "the input must be an object or a list"),
        ({"instances": []}, "the request has no rows"),
        ({"instances": ["a"] * 17}, "prompts in a request: 17, at most 16 are allowed here"),
    ],
    ids=["steps", "column", "blank", "null", "a string", "empty", "too many"],
)
def test_a_bad_request_is_400_with_our_message_and_no_stack(
    mlflow_server: str, body: dict[str, Any], message: str
) -> None:
    answer: Answer = post(f"{mlflow_server}/invocations", body)
    assert answer.status == 400
    assert answer.body["error_code"] == "INVALID_PARAMETER_VALUE"
    assert message in answer.body["message"]
    assert "Traceback" not in json.dumps(answer.body)


def test_concurrent_requests_are_answered_each_with_its_own_image(mlflow_server: str) -> None:
    def image(seed: int) -> Any:
        params = {"num_inference_steps": 2 + seed % 3, "seed": seed}
        (record,) = predictions(mlflow_server, instances=[HORSE], params=params)
        return decode(record["generated_images"][0])

    alone = [image(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(image, [0, 1, 2, 3] * 2))
    for one, other in zip(alone * 2, together, strict=True):
        assert psnr(one, other) >= 45


@pytest.fixture(scope="module")
def loaded(emoji_package: Path) -> Iterator[Any]:
    """The package as `mlflow.pyfunc.load_model` loads it."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(emoji_package))
    yield model
    model.unwrap_python_model().text_to_image.close()


def one_record(answer: pd.DataFrame) -> dict[str, Any]:
    (record,) = answer.to_dict("records")
    return dict(record)


INPUTS: dict[str, Any] = {
    "DataFrame": pd.DataFrame({"text_prompt": [HORSE, CAT]}),
    "DataFrame with any index": pd.DataFrame({"prompt": [HORSE, CAT]}, index=[7, 7]),
    "dict": {"text_prompt": [HORSE, CAT]},
    "list of dicts": [{"text_prompt": HORSE}, {"text_prompt": CAT}],
    "list of strings": [HORSE, CAT],
}


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_predict_takes_what_python_callers_have_and_the_same_seed_gives_the_same_bytes(
    loaded: Any, given: Any
) -> None:
    record = one_record(loaded.predict(given, params=QUICK))
    assert record.keys() == CELLS
    again = one_record(loaded.predict([HORSE, CAT], params=QUICK))
    assert record["generated_images"] == again["generated_images"]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([4, 9], [4, 9]),
        ([4, None], [4, 31]),
        (pd.array([None, 9], dtype="Int64"), [30, 9]),
        ([float("nan"), 9.0], [30, 9]),
    ],
    ids=["whole", "a gap", "a nullable column", "doubles"],
)
def test_a_row_without_a_seed_counts_on_from_the_requests_own(
    loaded: Any, seeds: Any, expected: list[int]
) -> None:
    rows = pd.DataFrame({"text_prompt": [HORSE, CAT], "seed": seeds})
    params = {"num_inference_steps": 1, "seed": 30, "return_metadata": True}
    assert one_record(loaded.predict(rows, params=params))["seed"] == expected


def test_a_negative_prompt_changes_its_own_row_alone(loaded: Any) -> None:
    plain = one_record(loaded.predict([HORSE, HORSE], params=QUICK))["generated_images"]
    rows = pd.DataFrame({"text_prompt": [HORSE, HORSE], "negative_prompt": [None, "a tree"]})
    with_negative = one_record(loaded.predict(rows, params=QUICK))["generated_images"]
    assert psnr(decode(with_negative[0]), decode(plain[0])) >= 45
    assert not np.array_equal(decode(with_negative[1]), decode(plain[1]))


def test_a_refusal_is_an_mlflow_exception_with_the_fitting_code(loaded: Any) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=r"^row 1: text_prompt must not be blank") as refused:
        loaded.predict([HORSE, " "])
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    assert refused.value.get_http_status_code() == 400


def test_what_nobody_foresaw_is_logged_and_the_caller_hears_nothing_of_it(
    loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    class Unforeseen:
        def __repr__(self) -> str:
            raise RuntimeError("a secret of the server")

    with pytest.raises(MlflowException) as refused:
        loaded.predict([{"text_prompt": Unforeseen()}])
    assert refused.value.message == "the model could not answer this request"
    assert "a secret of the server" in caplog.text
