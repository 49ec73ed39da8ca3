"""The commands for Azure ML, against a stand-in that runs what is deployed, through the unmodified SDK."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
import yaml
from azure.ai.ml import load_compute
from conftest import REPOSITORY
from PIL import Image
from stand_in import faults

from sd_mlflow.azure import client, endpoints
from sd_mlflow.cli import main
from sd_mlflow.images import psnr

#: Runs a command; its exit status, standard output and standard error.
Run = Callable[..., tuple[int, str, str]]
ONLINE, BATCH = REPOSITORY / "endpoints" / "online", REPOSITORY / "endpoints" / "batch"
FAST = ["--num-inference-steps", "2", "--scheduler", "DDIM"]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stand_in.Azure]:
    with stand_in.running(tmp_path_factory.mktemp("azure")) as azure, pytest.MonkeyPatch.context() as patch:
        for name, value in azure.environment.items():
            patch.setenv(name, value)
        patch.chdir(REPOSITORY)  # whose YAML the commands read
        yield azure


@pytest.fixture
def sd_mlflow(azure: stand_in.Azure, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        out, err = capfd.readouterr()
        assert not [secret for secret in azure.secrets if secret in out + err]
        assert "sd_mlflow/cli" not in err  # a stack trace of ours
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def model(emoji_package: Path, sd_mlflow: Run) -> str:
    """sd-emoji, registered in the workspace."""
    status, _, said = sd_mlflow("register", emoji_package, "--name", "sd-emoji")
    assert status == 0, said
    return "azureml:sd-emoji:1"


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_a_package_is_registered_once_in_a_workspace_and_in_a_registry(
    azure: stand_in.Azure, emoji_package: Path, sd_mlflow: Run
) -> None:
    for _ in range(2):
        status, _, said = sd_mlflow("register", emoji_package, "--name", "once")
        assert (status, "Registered azureml:once:1" in said) == (0, True)
        status, _, said = sd_mlflow("register", emoji_package, "--name", "once", "--registry", azure.registry)
        assert f"azureml://registries/{azure.registry}/models/once/versions/1" in said
    versions = [name for name in azure.resources() if "models/once" in name]
    assert versions == ["models/once/versions/1", f"registries/{azure.registry}/models/once/versions/1"]


def test_a_package_that_is_not_whole_is_not_uploaded(
    azure: stand_in.Azure, sd_mlflow: Run, tmp_path: Path
) -> None:
    status, _, said = sd_mlflow("register", tmp_path, "--name", "broken")
    assert status == 1
    assert "manifest" in said
    assert not [name for name in azure.resources() if "models/broken" in name]


def test_a_real_time_endpoint_from_the_first_deployment_to_the_last(
    azure: stand_in.Azure, model: str, sd_mlflow: Run, emoji_package: Path, tmp_path: Path
) -> None:
    name = "real-time"
    deploy = ["deploy", "online", "--endpoint", name, "--model", model]
    status, _, said = sd_mlflow(*deploy)
    assert status == 0, said
    assert azure.traffic(name) == {"blue": 100}

    sample = REPOSITORY / "endpoints" / "requests" / "sample-request.json"
    status, _, said = sd_mlflow("invoke", name, sample, *FAST, "--seed", "7", "--out", tmp_path / "azure")
    assert status == 0, said
    assert "seed 7" in said
    for number, prompt in enumerate(json.loads(sample.read_bytes())["input_data"]["data"], start=1):
        here = tmp_path / f"{number}.png"
        flags = [*FAST, "--seed", str(6 + number), "--model", emoji_package, "--out", here]
        assert sd_mlflow("generate", prompt, *flags)[0] == 0
        assert psnr(pixels(tmp_path / "azure" / f"{number}.png"), pixels(here)) >= 45

    assert sd_mlflow(*deploy, "--deployment", "green")[0] == 0
    assert azure.traffic(name) == {"blue": 100}
    assert sd_mlflow("traffic", name, "blue=10", "green=90")[0] == 0
    assert azure.traffic(name) == {"blue": 10, "green": 90}
    status, _, said = sd_mlflow("delete", name, "--deployment", "green")
    assert status == 1
    assert "traffic" in said
    asked = ["invoke", name, "--prompt", "a cat", "--deployment", "green", "--out", tmp_path / "green"]
    assert sd_mlflow(*asked, *FAST, "--image-format", "jpeg")[0] == 0
    assert Image.open(tmp_path / "green" / "1.jpeg").size == (128, 128)

    assert sd_mlflow("delete", name)[0] == 0
    assert not [resource for resource in azure.resources() if name in resource]


def test_what_the_endpoint_refuses_is_told_in_its_own_words(
    azure: stand_in.Azure, model: str, sd_mlflow: Run, tmp_path: Path
) -> None:
    """A prompt whose tokens only the model can count."""
    assert sd_mlflow("deploy", "online", "--endpoint", "refusing", "--model", model)[0] == 0
    status, _, said = sd_mlflow("invoke", "refusing", "--prompt", "qx " * 400, "--out", tmp_path)
    assert status == 1
    assert "refusing answered 413: " in said
    assert "tokens, at most 300 are allowed here" in said
    assert sd_mlflow("delete", "refusing")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a cat", "--num-inference-steps", "900"], "must be between 1 and 150, got 900"),
        ([], "give one of a request file, --prompt and --prompts"),
        (["--prompt", "a cat", "--prompts", "a.csv"], "give one of a request file, --prompt and --prompts"),
        (["--prompts", "a.csv", "--seed", "1"], "in a batch, parameters are columns"),
        (["no-such-request.json"], "no-such-request.json cannot be read: No such file"),
        (["--prompt", "a cat"], "not found: Online endpoint nowhere"),
    ],
)
def test_a_call_that_cannot_be_is_refused_before_it_leaves(
    sd_mlflow: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, _, said = sd_mlflow("invoke", "nowhere", *arguments, "--out", tmp_path / "out")
    assert (status, message in " ".join(said.split())) == (1, True), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (["blue=50"], "must be 100 in all, got 50"),
        (["blue"], "DEPLOYMENT=PERCENT"),
        (["=100"], "DEPLOYMENT=PERCENT"),
    ],
)
def test_traffic_that_does_not_add_up_is_refused(sd_mlflow: Run, shares: list[str], message: str) -> None:
    status, _, said = sd_mlflow("traffic", "nowhere", *shares)
    assert (status, message in said) == (1, True)


def test_a_batch_endpoint_scores_a_folder_of_files(
    azure: stand_in.Azure, model: str, sd_mlflow: Run, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    for number in range(3):
        rows = "\n".join(f"a cat {number}{row},2,DDIM" for row in range(2))
        (prompts / f"{number}.csv").write_text(f"text_prompt,num_inference_steps,scheduler\n{rows}\n")
    status, _, said = sd_mlflow("deploy", "batch", "--endpoint", "many", "--model", model)
    assert status == 0, said
    status, _, said = sd_mlflow("invoke", "many", "--prompts", prompts, "--out", out)
    assert status == 0, said
    (file,) = out.rglob("predictions.jsonl")
    predictions = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted((p["file"], p["row"]) for p in predictions) == [
        (f"{n}.csv", r) for n in range(3) for r in range(2)
    ]
    for prediction in predictions:
        assert prediction["error"] is None
        Image.open(file.parent / prediction["images"][0]).load()
    assert sd_mlflow("delete", "many", "--batch")[0] == 0
    assert not [resource for resource in azure.resources() if "many" in resource]


@pytest.mark.parametrize("kind", ["online", "batch"])
def test_a_dry_run_prints_what_azure_would_get_and_asks_nothing(
    azure: stand_in.Azure, sd_mlflow: Run, kind: str
) -> None:
    before = azure.log
    status, out, _ = sd_mlflow("deploy", kind, "--dry-run", "--endpoint", "my-own", "--model", "azureml:x:3")
    endpoint, deployment = yaml.safe_load_all(out)
    assert status == 0
    assert (endpoint["name"], deployment["endpoint_name"], deployment["model"]) == (
        "my-own",
        "my-own",
        "azureml:x:3",
    )
    assert azure.log == before


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.operation_fails("The disk is on fire."), "The disk is on fire"),
        (faults.out_of_quota("Standard_NC24ads_A100_v4"), "choose another --instance-type or region"),
        (faults.out_of_capacity(), "choose another --instance-type or region"),
        (faults.container_crashes(), "the container did not become healthy; what it said is above"),
        (faults.name_taken(), "choose another name with --endpoint"),
        (faults.throttled(times=1000, retry_after=0.01), "Azure is busy: run the same command again"),
        (faults.unavailable(times=1000, retry_after=0.01), "Azure is busy: run the same command again"),
        (faults.login_refused(), "log in with `az login`"),
    ],
    ids=["operation", "quota", "capacity", "container", "name", "throttled", "unavailable", "login"],
)
def test_a_fault_is_one_clear_sentence_and_leaves_nothing_behind(
    azure: stand_in.Azure, model: str, sd_mlflow: Run, fault: faults.Fault, message: str
) -> None:
    before = azure.resources()
    azure.play(fault)
    status, _, said = sd_mlflow("deploy", "online", "--endpoint", "unlucky", "--model", model)
    azure.clear()
    *_, sentence = said.strip().splitlines()
    assert status == 1
    assert sentence.startswith("Error: ")
    assert message in sentence
    assert [name for name in azure.resources() if "unlucky" in name] == []
    assert set(before) <= set(azure.resources())


def test_a_container_that_crashes_is_heard(azure: stand_in.Azure, model: str, sd_mlflow: Run) -> None:
    azure.play(faults.container_crashes())
    _, _, said = sd_mlflow("deploy", "online", "--endpoint", "unlucky", "--model", model)
    assert "RuntimeError: the stand-in plays a crash" in said.partition("Error: Deployment blue")[0]


def test_what_cannot_be_undone_is_named(azure: stand_in.Azure, model: str, sd_mlflow: Run) -> None:
    """A deployment fails on a day on which nothing can be deleted either."""
    azure.play(faults.operation_fails("Out of luck.", times=3))
    status, _, said = sd_mlflow("deploy", "online", "--endpoint", "unlucky", "--model", model)
    azure.clear()
    assert status == 1
    left = [name for name in azure.resources() if "unlucky" in name]
    assert bool(left) == ("unlucky" in said and "may be left at Azure" in said)
    if left:
        assert sd_mlflow("delete", "unlucky")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "azureml:nothing:1"], "nothing"),
        (["--environment", "azureml:nowhere:1"], "no environment nowhere"),
        (["--file", "nowhere.yml"], "nowhere.yml is missing: work in a clone of the repository"),
        (["--endpoint", "x"], "name"),
    ],
)
def test_what_is_missing_is_named(
    azure: stand_in.Azure, sd_mlflow: Run, arguments: list[str], message: str
) -> None:
    status, _, said = sd_mlflow("deploy", "online", "--endpoint", "unlucky", *arguments)
    assert status == 1
    assert message in said.strip().splitlines()[-1]
    assert not [name for name in azure.resources() if "unlucky" in name]


def test_without_a_workspace_it_says_what_to_set(
    azure: stand_in.Azure, sd_mlflow: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AZUREML_WORKSPACE")
    monkeypatch.chdir(tmp_path)
    status, _, said = sd_mlflow("delete", "nothing")
    assert (status, "Set AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP, AZUREML_WORKSPACE" in said) == (1, True)


def online_endpoint(file: Path) -> Any:
    return endpoints.ONLINE.load_endpoint(file)._to_rest_online_endpoint("westeurope")


def batch_endpoint(file: Path) -> Any:
    return endpoints.BATCH.load_endpoint(file)._to_rest_batch_endpoint("westeurope")


def online_deployment(file: Path) -> Any:
    return endpoints.ONLINE.load_deployment(file)._to_rest_object("westeurope")


def batch_deployment(file: Path) -> Any:
    return endpoints.BATCH.load_deployment(file)._to_rest_object("westeurope")


def compute(file: Path) -> Any:
    return load_compute(file)._to_rest_object()


FILES = {
    ONLINE / "endpoint.yml": online_endpoint,
    ONLINE / "endpoint-kubernetes.yml": online_endpoint,
    ONLINE / "deployment.yml": online_deployment,
    ONLINE / "deployment-no-code.yml": online_deployment,
    ONLINE / "deployment-kubernetes.yml": online_deployment,
    BATCH / "endpoint.yml": batch_endpoint,
    BATCH / "deployment.yml": batch_deployment,
    BATCH / "compute.yml": compute,
}


def test_every_yaml_file_is_tried() -> None:
    assert set(FILES) == {*ONLINE.glob("*.yml"), *BATCH.glob("*.yml")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_yaml_file_becomes_what_azure_s_rest_interface_takes(file: Path) -> None:
    assert FILES[file](file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_misspelt_key_is_refused_and_named(file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(file.read_text())
    *_, key = content
    changed = tmp_path / "changed.yml"
    changed.write_text(yaml.safe_dump({f"{name}x" if name == key else name: content[name] for name in content}))
    with pytest.raises(client.AzureError, match=f"{key}x: Unknown field"), client.errors("Reading"):
        FILES[file](changed)
