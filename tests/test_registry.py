"""registry/: azure-ai-ml and Azure's own checkers accept it, its environments resolve, its component runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import azure.ai.ml as azure
import mlflow.pyfunc
import pytest
import yaml
from azure.ai.ml._schema.component.command_component import CommandComponentSchema
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder
from azureml.assets.validate_assets import validate_assets
from azureml.registry.mgmt.asset_management import validate_model
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sd_mlflow import packaging

REGISTRY = REPOSITORY / "registry"
MODEL = REGISTRY / "models" / "stable-diffusion-v1-4"
ENVIRONMENTS = [REGISTRY / "environments" / name for name in ("sd-mlflow-cpu", "sd-mlflow-gpu")]
COMPONENT = REGISTRY / "components" / "package-checkpoint"

#: What `az ml` reads -> what reads it.
LOADERS: dict[Path, Callable[..., Any]] = {
    MODEL / "spec.yaml": azure.load_model,
    ENVIRONMENTS[0] / "spec.yaml": azure.load_environment,
    ENVIRONMENTS[1] / "spec.yaml": azure.load_environment,
    COMPONENT / "spec.yaml": azure.load_component,
    COMPONENT / "job.yaml": azure.load_job,
    REGISTRY / "registry.yml": azure.load_registry,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(REGISTRY)) if path.is_relative_to(REGISTRY) else path.name


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def copy_of_the_registry(tmp_path: Path) -> Path:
    return shutil.copytree(REGISTRY, tmp_path / "registry", symlinks=True)


every_file = pytest.mark.parametrize("file", LOADERS, ids=name_of)
each_environment = pytest.mark.parametrize("environment", ENVIRONMENTS, ids=name_of)


@every_file
def test_azure_ai_ml_loads_each_file_and_makes_its_rest_form(file: Path) -> None:
    assert LOADERS[file](file)._to_rest_object().properties


@every_file
def test_a_misspelt_key_is_refused_whichever_it_is(file: Path, tmp_path: Path) -> None:
    spec = read(file)
    changed = copy_of_the_registry(tmp_path) / file.relative_to(REGISTRY)
    # Of a component, azure-ai-ml misses what it needs and keeps what it does not know: see the next test.
    for key in {"name", "environment", "command"} if "command" in spec else spec.keys() - {"$schema"}:
        misspelt = {f"{name}_" if name == key else name: value for name, value in spec.items()}
        changed.write_text(yaml.safe_dump(misspelt), encoding="utf-8")
        with pytest.raises(Exception, match=f"Unknown field|{key}"):
            LOADERS[file](changed)._to_rest_object()


def test_no_key_of_the_component_is_misspelt() -> None:
    assert read(COMPONENT / "spec.yaml").keys() - {"$schema"} <= CommandComponentSchema._declared_fields.keys()


def test_the_assets_have_the_names_that_deployments_use() -> None:
    specs = [read(file) for file in LOADERS if file.name == "spec.yaml"]
    assert [f"{spec['name']}:{spec['version']}" for spec in specs] == [
        "stable-diffusion-v1-4:1",
        "sd-mlflow-cpu:1",
        "sd-mlflow-gpu:1",
        "package_checkpoint:1",
    ]
    assert read(MODEL / "spec.yaml")["type"] == "mlflow_model"
    assert read(COMPONENT / "spec.yaml")["environment"] == "azureml:sd-mlflow-cpu:1"


def azure_s_checkers_pass(registry: Path) -> bool:
    """Whether `azureml-assets` and `azureml-registry-tools`, run as registry/README.md says, find nothing."""
    assets = validate_assets(
        [registry],
        "asset.yaml",
        check_names=True,
        check_names_skip_pattern=re.compile("environment/sd-mlflow-cpu/1"),
        check_categories=True,
        check_build_context=True,
    )
    model = validate_model(registry / MODEL.relative_to(REGISTRY), allow_additional_properties=True)
    return bool(assets and model)


def test_azure_s_own_checkers_pass() -> None:
    assert azure_s_checkers_pass(REGISTRY)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("models/stable-diffusion-v1-4/spec.yaml", "license: creativeml-openrail-m\n  hugging", "hugging"),
        ("models/stable-diffusion-v1-4/model.yaml", "description.md", "missing.md"),
        ("environments/sd-mlflow-gpu/context/Dockerfile", "azureml/inference-base", "azureml/curated/base"),
        ("environments/sd-mlflow-gpu/context/conda.yaml", "--find-links", "--extra-index-url"),
        ("components/package-checkpoint/asset.yaml", 'categories: ["Models"]', ""),
    ],
)
def test_azure_s_own_checkers_see_what_is_wrong(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    registry = copy_of_the_registry(tmp_path)
    changed = registry / file
    text = changed.read_text(encoding="utf-8")
    assert right in text
    changed.write_text(text.replace(right, wrong), encoding="utf-8")
    assert not azure_s_checkers_pass(registry)


def pip_lines(environment: Path) -> list[str]:
    *_, pip = read(environment / "context" / "conda.yaml")["dependencies"]
    return list(pip["pip"])


def pins(lines: list[str]) -> dict[str, str]:
    """Distribution -> version, of lines that each pin one."""
    requirements = [Requirement(line) for line in lines if not line.startswith("-")]
    assert all(re.fullmatch("==[^*]+", str(requirement.specifier)) for requirement in requirements)
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


@each_environment
def test_an_environment_pins_what_a_package_requires_at_the_tested_versions(environment: Path) -> None:
    pinned = {name: Version(version).public for name, version in pins(pip_lines(environment)).items()}
    tested = pins([line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line])
    package = pins(packaging.requirements())
    assert {name: pinned.get(name) for name in package} == {name: tested[name] for name in package}
    assert pinned.keys() - package.keys() == {"azureml-core"}  # of no use to the tests: Azure's batch driver's


def test_the_environments_differ_in_the_build_of_torch_alone() -> None:
    cpu, gpu = ([re.sub("cu126|cpu", "BUILD", line) for line in pip_lines(each)] for each in ENVIRONMENTS)
    assert cpu == gpu
    assert [pins(pip_lines(each))["torch"].partition("+")[2] for each in ENVIRONMENTS] == ["cpu", "cu126"]
    assert [read(each / "spec.yaml")["tags"]["torch"] for each in ENVIRONMENTS] == [
        pins(pip_lines(each))["torch"] for each in ENVIRONMENTS
    ]


def test_the_pinned_set_resolves(tmp_path: Path) -> None:
    """By the configured index, which is not PyTorch's: of torch the version is resolved, not the build."""
    requirements, report = tmp_path / "requirements.txt", tmp_path / "report.json"
    pinned = pins(pip_lines(ENVIRONMENTS[0]))
    lines = [line for line in pip_lines(ENVIRONMENTS[0]) if not line.startswith("-")]
    requirements.write_text("\n".join(line.partition("+")[0] for line in lines))
    # What is installed here is preferred, so that only what is not is looked for.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", report, "-r", requirements],
        check=True,
    )
    found = {canonicalize_name(each["metadata"]["name"]) for each in json.loads(report.read_text())["install"]}
    assert not found & (pinned.keys() - {"azureml-core"})


def test_an_environment_holds_all_that_the_project_needs() -> None:
    """The component runs the project's command line, of which a package has no need."""
    held: set[str] = set()
    pending = set(pins(pip_lines(ENVIRONMENTS[0]))) - {"azureml-core"}
    while pending:
        held.add(name := pending.pop())
        needs = [Requirement(line) for line in metadata.requires(name) or []]
        required = [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
        pending |= {canonicalize_name(each) for each in required} - held
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} <= held


@each_environment
def test_the_image_is_pinned_to_a_dated_tag_and_used_by_its_server(environment: Path) -> None:
    dockerfile = (environment / "context" / "Dockerfile").read_text(encoding="utf-8")
    image, *others = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert not others
    assert re.fullmatch(r"mcr\.microsoft\.com/azureml/inference-base-[\w.-]+:20\d{6}\.v\d+", image)
    assert ("cuda" in image) == environment.name.endswith("gpu")
    assert "ENV AZUREML_CONDA_ENVIRONMENT_PATH=/azureml-envs/sd-mlflow\n" in dockerfile
    assert "--prefix /azureml-envs/sd-mlflow --file" in dockerfile


def test_the_model_card_has_its_sections_and_the_sample() -> None:
    card = (MODEL / "description.md").read_text(encoding="utf-8")
    assert re.findall("^# (.+)", card, re.MULTILINE) == [
        "Intended use",
        "Out of scope",
        "Limitations",
        "Bias",
        "Safety checker",
        "Licence",
        "Parameters",
        "Sample request and response",
    ]
    request, response = (json.loads(block) for block in re.findall("```json\n(.+?)```", card, re.DOTALL))
    sample = REPOSITORY / "endpoints" / "requests" / "sample-request.json"
    assert request == json.loads(sample.read_text(encoding="utf-8"))
    assert response[0].keys() == {"generated_images", "nsfw_content_detected"}
    assert "https://huggingface.co/spaces/CompVis/stable-diffusion-license" in card


def test_the_commands_of_the_readme_name_files_that_load_as_they_set_them() -> None:
    text = (REGISTRY / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("az ml ")]
    assert {REPOSITORY / words[words.index("--file") + 1] for words in commands} == set(LOADERS)
    for words in commands:
        file = REPOSITORY / words[words.index("--file") + 1]
        sets = [dict([word.split("=", 1)]) for word in words if word.startswith("tags.")]
        assert LOADERS[file](file, params_override=sets)._to_rest_object().properties
    model = next(words for words in commands if words[2] == "model")
    assert (REPOSITORY / model[model.index("--description") + 1].removeprefix("@")).is_file()


def test_the_upload_of_the_component_holds_the_project() -> None:
    source = COMPONENT / "src"
    uploaded = {name for _, name in get_upload_files_from_folder(source, ignore_file=get_ignore_file(source))}
    assert "sd_mlflow/cli/packages.py" in uploaded
    assert not any("__pycache__" in name for name in uploaded)


def filled_in(command: str, inputs: dict[str, str], model: Path) -> str:
    """The component's command as Azure runs it: `$[[...]]` stays only if its input is given."""
    given = re.sub(
        r"\$\[\[(.*?\$\{\{inputs\.(\w+)\}\}.*?)\]\]",
        lambda optional: optional[1] if optional[2] in inputs else "",
        command,
    )
    given = re.sub(r"\$\{\{inputs\.(\w+)\}\}", lambda name: shlex.quote(inputs[name[1]]), given)
    return given.replace("${{outputs.model}}", shlex.quote(str(model)))


def test_the_component_packages_into_a_folder_that_exists(tmp_path: Path) -> None:
    spec = read(COMPONENT / "spec.yaml")
    job = read(COMPONENT / "job.yaml")["jobs"]["package"]["inputs"]
    assert "--revision 133a" in filled_in(spec["command"], {**job, "dtype": "bfloat16"}, tmp_path)
    model, work = tmp_path / "output", tmp_path / "work"
    model.mkdir()
    shutil.copytree(COMPONENT / "src", work, ignore=shutil.ignore_patterns("__pycache__"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", filled_in(spec["command"], {"checkpoint": "sd-emoji", "dtype": "float32"}, model)],
        cwd=work,
        env=os.environ | {"PATH": path},
        check=True,
    )
    assert mlflow.pyfunc.load_model(str(model)).metadata.metadata["dtype"] == "float32"
