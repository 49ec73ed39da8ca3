"""The `az ml` scripts, against the stand-in for Azure, through an `az` that forwards to azure-ai-ml."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import stand_in
from conftest import REPOSITORY
from PIL import Image

ENDPOINTS = REPOSITORY / "endpoints"
ONLINE = ENDPOINTS / "text-to-image-online-endpoint.sh"
BATCH = ENDPOINTS / "text-to-image-batch-endpoint.sh"
SCRIPTS = [ONLINE, BATCH, ENDPOINTS / "online" / "autoscale.sh"]
AZ = REPOSITORY / "tests" / "az" / "az"
VARIABLES = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE", "ENDPOINT", "PACKAGE")


@dataclass(frozen=True)
class Run:
    """What one run of a script said, what it asked of Azure, and what was there afterwards."""

    status: int
    said: str
    asked: list[str]
    there: set[str]
    traffic: dict[str, int]

    def registered(self) -> list[str]:
        """The requests that create models or environments."""
        return [line for line in self.asked if re.match(r"PUT \S*/(models|environments)/[^/]+/versions/", line)]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stand_in.Azure]:
    with stand_in.running(tmp_path_factory.mktemp("azure")) as running:
        yield running


def call(
    script: Path, *arguments: str, environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """A script run in `folder`, both of its outputs together."""
    path = os.pathsep.join([str(AZ.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [script, *arguments],
        cwd=folder,
        env=os.environ | environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def variables(azure: stand_in.Azure, package: Path, endpoint: str, folder: Path) -> dict[str, str]:
    # Relative, as one types it.
    relative = os.path.relpath(package, folder)
    names = (azure.subscription_id, azure.resource_group, azure.workspace, endpoint, relative)
    return azure.environment | dict(zip(VARIABLES, names, strict=True))


def life(azure: stand_in.Azure, script: Path, endpoint: str, package: Path, folder: Path) -> list[Run]:
    """The script run, run again, run for a second deployment, and run to delete."""
    runs = []
    for arguments, more in (((), {}), ((), {}), ((), {"DEPLOYMENT": "green"}), (("--delete",), {})):
        before = len(azure.log)
        environment = variables(azure, package, endpoint, folder) | more
        ran = call(script, *arguments, environment=environment, folder=folder)
        # The SDK sends the code anew with each deployment, and a run of the batch script starts a job.
        there = {name for name in azure.resources() if not name.startswith(("codes/", "jobs/"))}
        traffic = azure.traffic(endpoint) if f"onlineEndpoints/{endpoint}" in there else {}
        runs.append(Run(ran.returncode, ran.stdout, azure.log[before:].splitlines(), there, traffic))
    return runs


@pytest.fixture(scope="module")
def online(
    azure: stand_in.Azure, emoji_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Run], Path]:
    folder = tmp_path_factory.mktemp("online")
    return life(azure, ONLINE, "pictures-online", emoji_package, folder), folder / "pictures"


@pytest.fixture(scope="module")
def batch(
    azure: stand_in.Azure, emoji_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Run], Path]:
    folder = tmp_path_factory.mktemp("batch")
    return life(azure, BATCH, "pictures-batch", emoji_package, folder), folder / "pictures"


@pytest.fixture(params=["online", "batch"])
def runs(request: pytest.FixtureRequest) -> list[Run]:
    """The runs of one of the two scripts."""
    found: tuple[list[Run], Path] = request.getfixturevalue(request.param)
    return found[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert (checked.stdout, checked.returncode) == ("", 0)
    assert os.access(script, os.X_OK)


def test_both_scripts_run_again_and_again(runs: list[Run]) -> None:
    assert [run.status for run in runs] == [0, 0, 0, 0], "\n".join(run.said for run in runs)


def test_the_second_run_registers_nothing_and_changes_nothing(runs: list[Run]) -> None:
    first, second, *_ = runs
    assert second.registered() == []
    assert second.there == first.there


def test_a_second_deployment_stands_beside_the_first(runs: list[Run]) -> None:
    _, before, after, _ = runs
    (new,) = after.there - before.there
    assert new.endswith("ndpoints/" + new.split("/")[1] + "/deployments/green")


def test_the_online_script_shifts_the_traffic_to_it(online: tuple[list[Run], Path]) -> None:
    assert [run.traffic for run in online[0]] == [{"blue": 100}, {"blue": 100}, {"green": 100}, {}]


def test_delete_leaves_what_costs_nothing(runs: list[Run]) -> None:
    assert not [name for name in runs[-1].there if "ndpoints/" in name]
    assert {name.split("/")[0] for name in runs[-1].there} >= {"models", "environments"}


def test_no_output_holds_a_secret(azure: stand_in.Azure, runs: list[Run]) -> None:
    assert azure.secrets
    assert not [secret for run in runs for secret in azure.secrets if secret in run.said]


def test_the_online_script_writes_the_two_pictures_of_the_sample(online: tuple[list[Run], Path]) -> None:
    runs, out = online
    assert {file.name for file in out.iterdir()} == {"response.json", "1.png", "2.png"}
    for number in (1, 2):
        with Image.open(out / f"{number}.png") as picture:
            picture.load()
            assert (picture.format, picture.size) == ("PNG", (128, 128))
    assert runs[0].said.count("nsfw_content_detected False") == 2


def test_the_batch_script_writes_a_picture_for_every_prompt_of_three_files(batch: tuple[list[Run], Path]) -> None:
    runs, out = batch
    (score,) = (file.parent for file in out.rglob("predictions.jsonl"))
    lines = [json.loads(line) for line in (score / "predictions.jsonl").read_text().splitlines()]
    assert {Path(line["file"]).name for line in lines} == {file.name for file in (out / "prompts").iterdir()}
    assert len({line["file"] for line in lines}) == 3
    drawn = [score / image for line in lines for image in line["images"]]
    assert len(drawn) == len(lines) == 4
    assert str(drawn[0].relative_to(out.parent)) in runs[0].said
    for file in drawn:
        with Image.open(file) as picture:
            picture.load()
            assert picture.size == (128, 128)


@pytest.mark.parametrize("missing", VARIABLES)
@pytest.mark.parametrize("script", [ONLINE, BATCH], ids=["online", "batch"])
def test_a_missing_variable_is_one_sentence(script: Path, missing: str, tmp_path: Path) -> None:
    environment = dict.fromkeys(VARIABLES, "something") | {missing: ""}
    ran = call(script, environment=environment, folder=tmp_path)
    assert ran.returncode != 0
    assert re.fullmatch(rf"\S+: line \d+: {missing}: (set it to|choose) [^\n]+\n", ran.stdout)
    assert not list(tmp_path.iterdir())


def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    environment = dict.fromkeys(VARIABLES, "something")
    ran = call(ONLINE, "--delte", environment=environment, folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, f"usage: {ONLINE} [--delete]\n")


def test_the_forwarder_says_that_it_is_not_the_cli_of_azure(tmp_path: Path) -> None:
    ran = call(AZ, "--help", environment={}, folder=tmp_path)
    assert "NOT Azure's CLI" in ran.stdout
    assert "NOT Azure's CLI" in AZ.read_text(encoding="utf-8")[:100]


@pytest.mark.parametrize("words", ["ml workspace list", "account show", "ml job download --name x --all"])
def test_the_forwarder_refuses_what_it_does_not_play(words: str, tmp_path: Path) -> None:
    ran = call(AZ, *words.split(), environment={}, folder=tmp_path)
    assert ran.returncode == 2
    assert "error:" in ran.stdout
