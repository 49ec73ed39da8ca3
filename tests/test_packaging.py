"""The package: complete, pinned, free of pickles and of this machine, and loadable with nothing else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pytest
import torch
import yaml
from checkpoints import change, emoji_copy
from conftest import REPOSITORY, decode
from pydantic import ValidationError

from sd_mlflow import checkpoint, manifest, packaging
from sd_mlflow.errors import CheckpointError, IntegrityError, PackageError
from sd_mlflow.parameters import PARAMETERS

CHEAP = {"num_inference_steps": 1, "height": 64, "width": 64, "guidance_scale": 1.0}
PICKLES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".npy", ".joblib"}


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def test_a_package_holds_what_it_promises(emoji_package: Path) -> None:
    top = {path.name for path in emoji_package.iterdir()}
    assert top >= {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "entry.py", "code", "artifacts"}
    assert (emoji_package / "code" / "sd_mlflow" / "model.py").is_file()
    read = manifest.verify(emoji_package / packaging.CHECKPOINT_PATH)
    assert (read.name, read.dtype, read.safety_checker) == ("sd-emoji", "bfloat16", True)
    described = yaml.safe_load((emoji_package / "MLmodel").read_text())
    assert described["metadata"]["digest"] == read.digest
    assert described["metadata"]["task"] == "text-to-image"
    assert described["model_size_bytes"] == pytest.approx(
        sum(file.stat().st_size for file in files(emoji_package)), rel=0.01
    )


def test_nothing_in_a_package_is_a_pickle(emoji_package: Path) -> None:
    assert [file for file in files(emoji_package) if file.suffix in PICKLES] == []
    pyfunc = yaml.safe_load((emoji_package / "MLmodel").read_text())["flavors"]["python_function"]
    assert pyfunc["model_code_path"] == "entry.py"
    assert "python_model" not in pyfunc


def test_nothing_in_a_package_tells_of_this_machine(emoji_package: Path) -> None:
    paths = {emoji_package.parent, REPOSITORY, Path(sys.prefix), Path(tempfile.gettempdir()), Path.home()}
    for file in files(emoji_package):
        if file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8")
            assert [path for path in paths - {Path("/")} if f"{path}/" in text] == [], file


def test_the_environments_agree_and_are_pinned(emoji_package: Path) -> None:
    requirements = (emoji_package / "requirements.txt").read_text().split()
    *conda, pip = yaml.safe_load((emoji_package / "conda.yaml").read_text())["dependencies"]
    virtualenv = yaml.safe_load((emoji_package / "python_env.yaml").read_text())
    assert pip == {"pip": requirements}
    assert conda == [f"python={platform.python_version()}", "pip"]
    assert virtualenv["python"] == platform.python_version()
    assert virtualenv["dependencies"] == ["-r requirements.txt"]
    assert [line for line in requirements if "==" not in line and "~=" not in line] == []
    named = {line.replace("~=", "==").partition("==")[0] for line in requirements}
    assert named == {*packaging.RUNTIME, *packaging.SERVING}
    assert "+" not in "".join(requirements)  # a local version such as 2.9.0+cpu is on no index


def test_the_signature_s_parameters_are_the_table_s(emoji_package: Path) -> None:
    signature = mlflow.models.get_model_info(str(emoji_package)).signature
    assert [(p.name, p.dtype.name, p.default) for p in signature.params] == [
        (p.name, p.kind, p.default) for p in PARAMETERS.values()
    ]
    assert [(c.name, c.required) for c in signature.inputs] == [
        ("text_prompt", True),
        ("negative_prompt", False),
        ("seed", False),
    ]


def test_the_input_example_is_the_sample_s_prompts(emoji_package: Path) -> None:
    sample = json.loads((REPOSITORY / "endpoints" / "requests" / "sample-request.json").read_text())["input_data"]
    example = json.loads((emoji_package / "input_example.json").read_text())
    assert example == {"columns": sample["columns"], "data": [[prompt] for prompt in sample["data"]]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """sd-emoji as somebody else's checkpoint, with licence and model card."""
    folder = emoji_copy(tmp_path / "source")
    (folder / "LICENSE.md").write_text("the licence")
    (folder / "README.md").write_text("the model card")
    return folder


def package(source: Path, out: Path, **options: Any) -> manifest.Manifest:
    return packaging.package(checkpoint.find(str(source)), out, **{"dtype": "bfloat16", **options})


def test_licence_and_model_card_are_carried_and_settings_honoured(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a new folder" / "package"
    package(source, out, settings={"max_prompts_per_request": "1", "prompt_in_provenance": False})
    assert (out / packaging.CHECKPOINT_PATH / "LICENSE.md").read_text() == "the licence"
    assert (out / packaging.CHECKPOINT_PATH / "README.md").read_text() == "the model card"
    model = load(out)
    assert len(model.predict(["a horse"], params=CHEAP)) == 1
    with pytest.raises(mlflow.MlflowException, match="at most 1"):
        model.predict(["a horse", "a cat"], params=CHEAP)


def test_a_folder_that_exists_is_refused_and_untouched(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "package"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(PackageError, match="exists already"):
        package(source, out)
    assert [(file.name, file.read_text()) for file in files(out)] == [("mine", "precious")]


def test_a_failure_midway_leaves_nothing(source: Path, tmp_path: Path) -> None:
    change(source, "vae", lambda weights: weights | {"quant_conv.bias": torch.full((8,), torch.nan)})
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias holds a value that is not finite"):
        package(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("setting", [{"max_batch_size": 0}, {"max_batch_size": "many"}, {"max_btach_size": 1}])
def test_a_bad_setting_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        package(source, tmp_path / "package", settings=setting)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_without_safety_checker_is_packaged_only_when_told(source: Path, tmp_path: Path) -> None:
    for file in files(source / "safety_checker"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"has no safety checker.*--without-safety-checker"):
        package(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

    written = package(source, tmp_path / "package", without_safety_checker=True)
    assert not written.safety_checker
    answer = load(tmp_path / "package").predict(["a horse"], params=CHEAP)
    assert answer["nsfw_content_detected"][0] == ["NotChecked"]


def test_a_checkpoint_that_has_a_safety_checker_keeps_it_whatever_is_said(source: Path, tmp_path: Path) -> None:
    assert package(source, tmp_path / "package", without_safety_checker=True).safety_checker


def load(package: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(package))


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """A package with one byte flipped in a weight of the UNet."""
    package(source, tmp_path / "package")
    file = tmp_path / "package" / packaging.CHECKPOINT_PATH / "unet" / "diffusion_pytorch_model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
    return tmp_path / "package"


def test_a_flipped_byte_is_refused_by_mlflow_and_by_inspect_and_its_file_named(damaged: Path) -> None:
    with pytest.raises(IntegrityError, match=r"unet/diffusion_pytorch_model\.safetensors is not the file"):
        load(damaged)
    ran = subprocess.run(
        [sys.executable, "-m", "sd_mlflow.cli", "inspect", damaged],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "unet/diffusion_pytorch_model.safetensors is not the file" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an MLflow registry in SQLite, and of whatever it writes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_registered_package_is_served_from_where_it_lies(source: Path, registry: Path) -> None:
    out = registry / "a package"
    package(source, out)
    for file in files(source):
        file.unlink()
    assert packaging.register(out, "sd-emoji") == "models:/sd-emoji/1"
    answer = mlflow.pyfunc.load_model("models:/sd-emoji/1").predict(["a horse"], params=CHEAP)
    assert decode(answer["generated_images"][0][0]).shape == (64, 64, 3)
    assert packaging.register(out, "sd-emoji") == "models:/sd-emoji/2"
    weights = [file.relative_to(registry) for file in files(registry) if file.suffix == ".safetensors"]
    assert len(weights) == 4
    assert {file.parts[0] for file in weights} == {"a package"}


# The process may not connect to anything: an audit hook names whoever tries, and where the
# machine lets us (Linux with user namespaces) it has no network at all.
ALONE = """
import sys

def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and not isinstance(arguments[-1], str):
        raise ConnectionError(f"{event} {arguments}")

sys.addaudithook(guard)
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
import sd_mlflow.engine, json
answer = model.predict(["a horse"], params=json.loads(sys.argv[2]))
print(json.dumps({"code": sd_mlflow.__file__, "flags": answer["nsfw_content_detected"][0]}))
"""


def test_a_package_loads_and_predicts_without_network_and_with_its_own_code(
    emoji_package: Path, tmp_path: Path
) -> None:
    """Even where the project is installed: MLflow puts the package's code first on the path."""
    unshared = ["unshare", "--map-root-user", "--net"]
    without_network = subprocess.run([*unshared, "true"], capture_output=True, check=False).returncode == 0
    ran = subprocess.run(
        [*(unshared if without_network else []), sys.executable, "-c", ALONE, emoji_package, json.dumps(CHEAP)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HUB_OFFLINE")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert Path(said["code"]).is_relative_to(emoji_package / "code")
    assert said["flags"] in (["True"], ["False"])
