"""The stand-in for Azure, seen through the unmodified SDK: what it takes, what it refuses, what it plays."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
import stand_in
from azure.ai.ml import Input, MLClient
from azure.ai.ml.entities import (
    AmlCompute,
    BatchEndpoint,
    BatchRetrySettings,
    CodeConfiguration,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    ModelBatchDeployment,
    ModelBatchDeploymentSettings,
    OnlineRequestSettings,
)
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential
from stand_in import Azure, batch_worker, faults

ONLINE_SCRIPT = """
import json, os, time
from pathlib import Path

def init():
    global factor, root
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    factor = float((root / "tiny" / "weights.txt").read_text())

def run(raw):
    body = json.loads(raw)
    time.sleep(body.get("sleep", 0))
    where = "/".join(root.parts[-2:])
    return {"y": factor * body["x"], "where": where, "color": os.environ["COLOR"],
            "secret": os.environ.get("AZURE_CLIENT_SECRET")}
"""
BATCH_SCRIPT = """
import os, time
from pathlib import Path

def init():
    global out
    out = Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
    assert (Path(os.environ["AZUREML_MODEL_DIR"]) / "tiny" / "weights.txt").is_file()
    assert os.environ.get("START") != "badly"

def run(paths):
    words = [Path(path).read_text() for path in paths]
    mark = out / ("-".join(Path(path).name for path in paths) + ".tried")
    first, _ = not mark.exists(), mark.touch()
    if "fail once" in words and first or "fail" in words:
        raise ValueError("as it was told")
    if "sleep" in words:
        time.sleep(60)
    return [f"{Path(path).name} {word} {os.getpid()}" for path, word in zip(paths, words) if word != "drop"]
"""

NO_CODE_MODEL = """
class Doubles:
    def predict(self, frame, params=None):
        return frame * 2

def _load_pyfunc(path):
    return Doubles()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two files, and the code that scores with it."""
    root = tmp_path_factory.mktemp("sent")
    for name, content in {
        "tiny/weights.txt": b"3",
        "tiny/more/bytes.bin": bytes(range(256)) * 300,
        "code/online.py": ONLINE_SCRIPT.encode(),
        "code/batch.py": BATCH_SCRIPT.encode(),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    with (
        pytest.MonkeyPatch.context() as patch,
        stand_in.running(tmp_path_factory.mktemp("azure") / "run") as azure,
    ):
        for name, value in azure.environment.items():
            patch.setenv(name, value)
        yield azure


@pytest.fixture(autouse=True)
def calm(azure: Azure) -> Iterator[None]:
    yield
    azure.clear()


@pytest.fixture(scope="module")
def client(azure: Azure) -> MLClient:
    return client_of(azure)


def client_of(azure: Azure) -> MLClient:
    return MLClient(DefaultAzureCredential(), azure.subscription_id, azure.resource_group, azure.workspace)


@pytest.fixture(scope="module")
def registered(client: MLClient, files: Path) -> None:
    client.models.create_or_update(Model(name="tiny", version="1", path=str(files / "tiny")))
    client.environments.create_or_update(Environment(name="env", version="1", image="mcr.microsoft.com/azureml/x"))
    client.compute.begin_create_or_update(
        AmlCompute(name="cpus", size="Standard_DS3_v2", max_instances=1)
    ).result()


Make = Callable[..., ManagedOnlineDeployment]


@pytest.fixture(scope="module")
def deployment_of(files: Path) -> Make:
    """A deployment that is right, but for what is given."""

    def make(name: str = "blue", endpoint_name: str = "endpoint", **changed: Any) -> ManagedOnlineDeployment:
        return ManagedOnlineDeployment(
            **{
                "name": name,
                "endpoint_name": endpoint_name,
                "model": "azureml:tiny:1",
                "environment": "azureml:env:1",
                "code_configuration": CodeConfiguration(code=str(files / "code"), scoring_script="online.py"),
                "environment_variables": {"COLOR": name, "GUNICORN_CMD_ARGS": "--threads 4"},
                "instance_type": "Standard_DS3_v2",
                "instance_count": 1,
                "request_settings": OnlineRequestSettings(request_timeout_ms=2000),
                **changed,
            }
        )

    return make


@pytest.fixture(scope="module")
def endpoint(client: MLClient, registered: None, deployment_of: Make) -> str:
    """An online endpoint whose one deployment, blue, has all of its traffic."""
    client.online_endpoints.begin_create_or_update(
        ManagedOnlineEndpoint(name="endpoint", auth_mode="key")
    ).result()
    client.online_deployments.begin_create_or_update(deployment_of()).result()
    send_traffic(client, {"blue": 100})
    return "endpoint"


def send_traffic(client: MLClient, shares: dict[str, int], endpoint: str = "endpoint") -> None:
    wanted = ManagedOnlineEndpoint(name=endpoint, auth_mode="key", traffic=shares)
    client.online_endpoints.begin_create_or_update(wanted).result()


@pytest.fixture
def score(client: MLClient, endpoint: str) -> Callable[..., requests.Response]:
    """Call the endpoint as any HTTP client does."""

    def call(body: object, key: str | None = None, **headers: str) -> requests.Response:
        uri = client.online_endpoints.get(endpoint).scoring_uri
        key = client.online_endpoints.get_keys(endpoint).primary_key if key is None else key
        headers["Authorization"] = f"Bearer {key}"
        return requests.post(
            uri, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )

    return call


@pytest.mark.parametrize("place", ["workspace", "registry"])
def test_a_model_comes_back_byte_for_byte(azure: Azure, files: Path, tmp_path: Path, place: str) -> None:
    registry = MLClient(DefaultAzureCredential(), registry_name=azure.registry) if place == "registry" else None
    client = registry or client_of(azure)
    client.models.create_or_update(Model(name="bytes", version="1", path=str(files / "tiny")))
    client.models.download("bytes", "1", download_path=tmp_path)
    sent = {path.relative_to(files): path.read_bytes() for path in (files / "tiny").rglob("*.*")}
    (back,) = tmp_path.rglob("tiny")
    assert {path.relative_to(back.parent): path.read_bytes() for path in back.rglob("*.*")} == sent
    assert ("registries/registry-stand-in/" if registry else "") + "models/bytes/versions/1" in azure.resources()


def test_versions_count_up_are_archived_and_do_not_change(client: MLClient, files: Path) -> None:
    for expected in ("1", "2"):
        model = client.models.create_or_update(Model(name="counted", path=str(files / "tiny")))
        assert model.version == expected
    client.models.archive("counted", "1")
    assert [model.version for model in client.models.list("counted")] == ["2"]
    assert client.models.get("counted", label="latest").version == "2"
    with pytest.raises(Exception, match=r"already linked|cannot be updated"):
        client.models.create_or_update(Model(name="counted", version="2", path=str(files / "code")))


def test_a_deployment_runs_the_code_that_was_sent(client: MLClient, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"x": 2}')
    answer = client.online_endpoints.invoke(endpoint, request_file=str(tmp_path / "request.json"))
    assert json.loads(answer) == {"y": 6.0, "where": "tiny/1", "color": "blue", "secret": None}


def test_calling_needs_a_key(client: MLClient, endpoint: str, score: Callable[..., requests.Response]) -> None:
    old = client.online_endpoints.get_keys(endpoint).primary_key
    assert score({"x": 1}, key="wrong").status_code == 401
    assert score({"x": 1}).status_code == 200
    client.online_endpoints.begin_regenerate_keys(endpoint).result()
    assert score({"x": 1}, key=old).status_code == 401


def test_what_the_model_refuses_is_424_outside(score: Callable[..., requests.Response]) -> None:
    answer = score({"no": "x"})
    assert answer.status_code == 424
    assert answer.headers["ms-azureml-model-error-statuscode"] == "500"


def test_a_slow_answer_is_cut_off(score: Callable[..., requests.Response]) -> None:
    assert score({"x": 1, "sleep": 4}).status_code == 408


def test_the_log_of_a_deployment_is_that_of_its_server(
    client: MLClient, endpoint: str, score: Callable[..., requests.Response]
) -> None:
    score({"x": 1})
    assert "POST /score 200" in client.online_deployments.get_logs("blue", endpoint, lines=20)


def test_traffic_moves_to_a_second_deployment(
    azure: Azure,
    client: MLClient,
    endpoint: str,
    deployment_of: Make,
    score: Callable[..., requests.Response],
    files: Path,
) -> None:
    registry = MLClient(DefaultAzureCredential(), registry_name=azure.registry)
    model = registry.models.create_or_update(Model(name="shared", version="7", path=str(files / "tiny")))
    curated = "azureml://registries/azureml/environments/curated/versions/1"
    green = deployment_of("green", model=model.id, environment=curated)
    client.online_deployments.begin_create_or_update(green).result()
    assert score({"x": 1}).json()["color"] == "blue"
    assert score({"x": 1}, azureml_model_deployment="green").json()["where"] == "shared/7"
    with pytest.raises(HttpResponseError, match="100% of the traffic"):
        client.online_deployments.begin_delete("blue", endpoint)
    send_traffic(client, {"blue": 0, "green": 100})
    assert azure.traffic(endpoint) == {"green": 100}
    assert score({"x": 1}).json()["color"] == "green"
    send_traffic(client, {"blue": 100})
    client.online_deployments.begin_delete("green", endpoint).result()
    assert "onlineEndpoints/endpoint/deployments/green" not in azure.resources()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"request_settings": OnlineRequestSettings(request_timeout_ms=180_001)}, "at most 00:03:00"),
        ({"instance_type": None}, "InstanceType is required|vmSize"),
        ({"instance_type": "big"}, "VM size big is not supported"),
        ({"instance_count": 0}, "at least 1"),
        ({"model": "azureml:nothing:1"}, "does not exist"),
        ({"model": None}, "model is required"),
        ({"environment": "azureml:nothing:1"}, "does not exist"),
        ({"environment": None}, "environmentId is required"),
        ({"code_configuration": None}, "needs a code configuration"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_deployment_that_is_wrong_is_refused(
    azure: Azure, client: MLClient, endpoint: str, deployment_of: Make, changed: dict[str, Any], message: str
) -> None:
    before = azure.resources()
    with pytest.raises(HttpResponseError, match=message):
        client.online_deployments.begin_create_or_update(deployment_of(**{"name": "wrong", **changed}))
    assert [name for name in azure.resources() if name not in before and not name.startswith("codes/")] == []
    assert azure.problems


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"traffic": {"nobody": 100}}, "does not have: nobody"),
        ({"traffic": {"blue": 50}}, "sums to 50"),
        ({"auth_mode": "password"}, "password"),
    ],
    ids=str,
)
def test_an_endpoint_that_is_wrong_is_refused(
    client: MLClient, endpoint: str, changed: dict[str, Any], message: str
) -> None:
    wanted = ManagedOnlineEndpoint(**{"name": endpoint, "auth_mode": "key", **changed})
    with pytest.raises(HttpResponseError, match=message):
        client.online_endpoints.begin_create_or_update(wanted)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("onlineEndpoints/a", {"location": "eastus", "properties": {"authMode": "Key"}}, 400, "name a is invalid"),
        ("onlineEndpoints/under_score", {"location": "eastus", "properties": {}}, 400, "under_score is invalid"),
        ("onlineEndpoints/right", {"properties": {"authMode": "Key"}}, 400, "location is required"),
        ("onlineEndpoints/right", {"location": "eastus"}, 400, "properties is required"),
        ("computes/right", {"properties": {"computeType": "Kubernetes"}}, 400, "AmlCompute alone"),
        (
            "models/right/versions/1",
            {"properties": {"modelUri": "https://example.org/x"}},
            400,
            "not in a datastore",
        ),
        ("environments/right/versions/1", {"properties": {}}, 400, "an image or a build context"),
        ("nothings/right", {}, 404, "does not play"),
    ],
)
def test_what_the_sdk_would_not_send_is_refused_too(
    azure: Azure, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    workspace = f"/subscriptions/{azure.subscription_id}/resourceGroups/{azure.resource_group}/providers"
    workspace += f"/Microsoft.MachineLearningServices/workspaces/{azure.workspace}"
    answer = requests.put(
        f"https://management.azure.com{workspace}/{path}", json=body, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_an_endpoint_name_can_be_taken(azure: Azure, client: MLClient, endpoint: str) -> None:
    with pytest.raises(HttpResponseError, match="already an endpoint with this name"):
        client.batch_endpoints.begin_create_or_update(BatchEndpoint(name=endpoint)).result()
    azure.play(faults.name_taken())
    with pytest.raises(HttpResponseError, match="already an endpoint with this name"):
        client.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="other")).result()


def test_what_does_not_exist_is_404(client: MLClient, deployment_of: Make, registered: None) -> None:
    for get in (
        lambda: client.models.get("nothing", "1"),
        lambda: client.online_endpoints.get("nothing"),
        lambda: client.compute.get("nothing"),
        lambda: client.jobs.get("nothing"),
        lambda: client.online_deployments.begin_create_or_update(deployment_of(endpoint_name="nothing")),
    ):
        with pytest.raises(ResourceNotFoundError):
            get()


def test_an_mlflow_model_without_a_script_is_served(
    client: MLClient, endpoint: str, deployment_of: Make, score: Callable[..., requests.Response], tmp_path: Path
) -> None:
    flavor = {"python_function": {"loader_module": "doubles", "code": "code"}}
    for name, content in {"MLmodel": json.dumps({"flavors": flavor}), "code/doubles.py": NO_CODE_MODEL}.items():
        (tmp_path / "doubles" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "doubles" / name).write_text(content)
    client.models.create_or_update(
        Model(name="doubles", version="1", type="mlflow_model", path=str(tmp_path / "doubles"))
    )
    bare = {"model": "azureml:doubles:1", "environment": None, "code_configuration": None}
    client.online_deployments.begin_create_or_update(deployment_of("no-code", **bare)).result()
    body = {"input_data": {"columns": ["x"], "index": [0, 1], "data": [[1], [4]]}}
    assert score(body, azureml_model_deployment="no-code").json() == [{"x": 2}, {"x": 8}]
    client.online_deployments.begin_delete("no-code", endpoint).result()


def test_a_client_that_waits_gets_through_throttling(azure: Azure, client: MLClient, registered: None) -> None:
    azure.play(faults.throttled(times=2, retry_after=0.02))
    azure.play(faults.unavailable(times=1, retry_after=0.02))
    assert client.models.get("tiny", "1").version == "1"
    assert azure.log.count(" 429 TooManyRequests:") == 2


@pytest.mark.parametrize("fault", [faults.throttled, faults.unavailable])
def test_what_does_not_pass_reaches_the_caller(
    azure: Azure, client: MLClient, registered: None, fault: Callable[..., faults.Fault]
) -> None:
    azure.play(fault(times=1000, retry_after=0.02))
    with pytest.raises(HttpResponseError) as raised:
        client.models.get("tiny", "1")
    assert raised.value.status_code in (429, 503)


def test_an_operation_can_fail(azure: Azure, client: MLClient) -> None:
    azure.play(faults.operation_fails("The disk of the region is full."))
    poller = client.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="unlucky"))
    with pytest.raises(HttpResponseError, match="The disk of the region is full"):
        poller.result()
    assert client.online_endpoints.get("unlucky").provisioning_state == "Failed"
    client.online_endpoints.begin_delete("unlucky").result()
    assert "onlineEndpoints/unlucky" not in azure.resources()


def test_a_quota_can_be_used_up(azure: Azure, client: MLClient, endpoint: str, deployment_of: Make) -> None:
    azure.play(faults.out_of_quota("Standard_DS3_v2"))
    with pytest.raises(HttpResponseError, match="Not enough quota available for Standard_DS3_v2"):
        client.online_deployments.begin_create_or_update(deployment_of("broke"))
    azure.play(faults.out_of_cluster_quota())
    with pytest.raises(HttpResponseError, match="vCPU quota of 0"):
        client.compute.begin_create_or_update(AmlCompute(name="broke", size="Standard_DS3_v2")).result()


def test_a_container_that_crashes_says_why_in_its_log(
    azure: Azure, client: MLClient, endpoint: str, deployment_of: Make
) -> None:
    azure.play(faults.container_crashes())
    poller = client.online_deployments.begin_create_or_update(deployment_of("ill"))
    with pytest.raises(HttpResponseError, match="User container has crashed or terminated"):
        poller.result()
    assert "the stand-in plays a crash" in client.online_deployments.get_logs("ill", endpoint, lines=100)
    assert client.online_deployments.get("ill", endpoint).provisioning_state == "Failed"
    client.online_deployments.begin_delete("ill", endpoint).result()


def test_a_login_can_be_refused(azure: Azure) -> None:
    azure.play(faults.login_refused())
    with pytest.raises(ClientAuthenticationError, match="Invalid client secret"):
        client_of(azure).models.get("tiny", "1")


def test_unknown_hosts_and_routes_are_problems(azure: Azure) -> None:
    assert requests.get("https://example.org/x").status_code == 404
    assert requests.get("https://management.azure.com/tenants").status_code == 401
    assert [problem for problem in azure.problems if "does not play GET https://example.org/x" in problem]


@pytest.fixture(scope="module")
def batch(client: MLClient, registered: None, files: Path) -> str:
    """A batch endpoint with a default deployment: two files a mini-batch, one retry, a short patience."""
    client.batch_endpoints.begin_create_or_update(BatchEndpoint(name="batch")).result()
    client.batch_deployments.begin_create_or_update(batch_deployment(files)).result()
    endpoint = client.batch_endpoints.get("batch")
    endpoint.defaults.deployment_name = "blue"
    client.batch_endpoints.begin_create_or_update(endpoint).result()
    return "batch"


def batch_deployment(files: Path, settings: dict[str, Any] | None = None, **changed: Any) -> ModelBatchDeployment:
    return ModelBatchDeployment(
        **{
            "name": "blue",
            "endpoint_name": "batch",
            "model": "azureml:tiny:1",
            "environment": "azureml:env:1",
            "compute": "cpus",
            "code_configuration": CodeConfiguration(code=str(files / "code"), scoring_script="batch.py"),
            "settings": ModelBatchDeploymentSettings(
                **{
                    "mini_batch_size": 2,
                    "retry_settings": BatchRetrySettings(max_retries=1, timeout=2),
                    "error_threshold": 1,
                    "output_file_name": "rows.txt",
                    **(settings or {}),
                }
            ),
            **changed,
        }
    )


@pytest.fixture
def run_job(client: MLClient, batch: str, tmp_path: Path) -> Callable[..., Any]:
    """Invoke the endpoint with these words, a file each, and wait: the job, and its rows as words."""

    def run(*words: str, **invoke: Any) -> tuple[Any, list[list[str]]]:
        for number, word in enumerate(words):
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"{number}.txt").write_text(word)
        inputs = {"words": Input(type="uri_folder", path=str(tmp_path / "in"))}
        job = client.batch_endpoints.invoke(endpoint_name=batch, inputs=inputs, **invoke)
        client.jobs.stream(job.name)
        client.jobs.download(job.name, download_path=tmp_path / "out", output_name="score")
        rows = (tmp_path / "out" / "rows.txt").read_text().splitlines()
        return client.jobs.get(job.name), [row.split() for row in rows]

    return run


def test_a_batch_job_scores_mini_batches_and_appends_their_rows(
    run_job: Callable[..., Any], tmp_path: Path
) -> None:
    job, rows = run_job("a", "b", "c")
    assert job.status == "Completed"
    assert [row[:2] for row in rows] == [["0.txt", "a"], ["1.txt", "b"], ["2.txt", "c"]]
    assert len({row[2] for row in rows}) == 1, "one process, one init"
    assert (tmp_path / "out" / "0.txt-1.txt.tried").exists(), "what the script wrote comes with the rows"


def test_a_mini_batch_is_tried_again(run_job: Callable[..., Any]) -> None:
    _, rows = run_job("a", "b", "fail once")
    assert [row[0] for row in rows] == ["0.txt", "1.txt", "2.txt"]


def test_failures_within_the_threshold_are_left_out(run_job: Callable[..., Any]) -> None:
    _, rows = run_job("a", "b", "fail")
    assert [row[0] for row in rows] == ["0.txt", "1.txt"]


def test_a_mini_batch_that_takes_too_long_is_ended(run_job: Callable[..., Any]) -> None:
    impatient = [{"retry_settings": {"max_retries": 0, "timeout": 1}}]
    _, rows = run_job("a", "b", "sleep", params_override=impatient)
    assert [row[0] for row in rows] == ["0.txt", "1.txt"]


@pytest.mark.parametrize("words", [("a", "fail"), ("drop", "drop")], ids=str)
def test_failures_past_the_threshold_fail_the_job(run_job: Callable[..., Any], words: tuple[str, ...]) -> None:
    with pytest.raises(JobException, match="2 items failed, more than the error threshold of 1"):
        run_job(*words)


def test_a_job_can_be_cancelled(client: MLClient, batch: str, tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text("sleep")
    patient = [{"retry_settings": {"timeout": 600}}]
    inputs = {"words": Input(type="uri_folder", path=str(tmp_path))}
    job = client.batch_endpoints.invoke(endpoint_name=batch, inputs=inputs, params_override=patient)
    client.jobs.begin_cancel(job.name).result()
    client.jobs.stream(job.name)
    assert client.jobs.get(job.name).status == "Canceled"
    assert job.name in [each.name for each in client.batch_endpoints.list_jobs(batch)]


def test_a_data_frame_is_appended_by_rows() -> None:
    frame = pd.DataFrame({"file": ["a.csv", "b.csv"], "label": ["cat", "a dog"]})
    assert batch_worker.lines(frame) == ["a.csv cat", 'b.csv "a dog"']
    with pytest.raises(TypeError, match="must return a list or a pandas DataFrame, not str"):
        batch_worker.lines("text")


def test_a_script_that_does_not_start_fails_the_job(
    client: MLClient, files: Path, run_job: Callable[..., Any]
) -> None:
    bad = batch_deployment(files, {"environment_variables": {"START": "badly"}}, name="bad")
    client.batch_deployments.begin_create_or_update(bad).result()
    with pytest.raises(JobException, match=r"init\(\) failed"):
        run_job("a", deployment_name="bad")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"compute": "nothing"}, "computes/nothing .* does not exist"),
        ({"settings": {"mini_batch_size": 0}}, "MiniBatchSize must be at least 1"),
        ({"settings": {"error_threshold": -2}}, "ErrorThreshold"),
        ({"settings": {"output_file_name": "a/b"}}, "must be a file's name"),
        ({"code_configuration": None}, "codeConfiguration is required"),
    ],
    ids=str,
)
def test_a_batch_deployment_that_is_wrong_is_refused(
    client: MLClient, batch: str, files: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(HttpResponseError, match=message):
        client.batch_deployments.begin_create_or_update(batch_deployment(files, name="wrong", **changed))


def test_all_stops_when_it_ends(files: Path, deployment_of: Make, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, stand_in.running(tmp_path / "azure") as other:
        for name, value in other.environment.items():
            patch.setenv(name, value)
        client = client_of(other)
        client.models.create_or_update(Model(name="tiny", version="1", path=str(files / "tiny")))
        client.environments.create_or_update(Environment(name="env", version="1", image="x"))
        client.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="short")).result()
        client.online_deployments.begin_create_or_update(deployment_of("blue", "short")).result()
        (server,) = other.servers()
        with urllib.request.urlopen(server) as health:
            assert health.status == 200
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(server)


def test_its_own_log_holds_no_secret(azure: Azure, client: MLClient, endpoint: str, batch: str) -> None:
    """After all of the above, in the files that it keeps beside the blobs: each secret was used."""
    key = client.online_endpoints.get_keys(endpoint).primary_key
    assert {key, os.environ["AZURE_CLIENT_SECRET"]} <= azure.secrets
    written = azure.log + "".join(path.read_text() for path in azure.folder.rglob("*.log"))
    assert [secret for secret in azure.secrets if secret in written] == []
    assert not any(secret in problem for secret in azure.secrets for problem in azure.problems)
