"""A checkpoint folder becomes an MLflow model folder that answers everywhere.

OUT/
  MLmodel  conda.yaml  python_env.yaml  requirements.txt  input_example.json
  entry.py                  the model as code: nothing is pickled
  code/sd_mlflow/           this project, so that the package needs no other install
  artifacts/checkpoint/     the weights as safetensors, manifest.json, licence, model card
  artifacts/settings.json   limits that the environment of a deployment may change
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from sd_mlflow import checkpoint, manifest
from sd_mlflow.contract import PROMPT, signature
from sd_mlflow.errors import CheckpointError, PackageError
from sd_mlflow.manifest import DTypeName
from sd_mlflow.settings import Settings

#: What a package needs to run. Each is pinned to the version that packaged it.
RUNTIME = (
    "mlflow",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "pydantic-settings",
    "pandas",
    "pillow",
)
#: What Azure's servers need beside it, with what to ask for where it is not installed.
SERVING = {"azureml-inference-server-http": "~=1.4", "azureml-ai-monitoring": "~=1.0"}
#: The prompts of the catalog's sample.
EXAMPLE = ["a photograph of an astronaut riding a horse", "a photograph of a cat riding a horse"]

#: What of this project a package has no use for.
_NOT_CARRIED = ("azure", "bench", "emoji", "cli", "report.py", "demo.py", "full_size.py", "__pycache__", "*.pyc")

CHECKPOINT_PATH = Path("artifacts", "checkpoint")


def package(
    source: checkpoint.Source,
    out: Path,
    *,
    dtype: DTypeName,
    settings: Mapping[str, Any] | None = None,
    without_safety_checker: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> manifest.Manifest:
    """Write `source` as an MLflow model to the new folder `out`, whole or not at all.

    `settings` are `sd_mlflow.settings.Settings` by name; `advance` hears of the bytes converted.
    Raises `CheckpointError`, or `PackageError` if `out` exists.
    """
    if out.exists():
        raise PackageError(f"{out} exists already: give another folder, or remove it")
    if not source.safety_checker and not without_safety_checker:
        raise CheckpointError(
            f"{source.name} has no safety checker: its images would not be checked. "
            "Say --without-safety-checker if that is what you want"
        )
    given = dict(settings or {})
    Settings(**given)  # a bad value is found now, not where the package runs
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _save_model(partial, given)
        target = partial / CHECKPOINT_PATH
        entries = checkpoint.convert(source, target, dtype, advance)
        written = manifest.write(
            target,
            name=source.name,
            revision=source.revision,
            dtype=dtype,
            safety_checker=source.safety_checker,
            known=entries,
        )
        _finish_mlmodel(partial, written)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def register(out: Path, name: str) -> str:
    """Register the package `out` as the next version of `name` at `MLFLOW_TRACKING_URI`, where it lies.

    Returns the URI `models:/NAME/VERSION`.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(name, source=out.resolve().as_uri())
    return f"models:/{name}/{version.version}"


def requirements() -> list[str]:
    """The pip requirements of a package, pinned to what is installed here."""
    return [_pinned(name, "") for name in RUNTIME] + [_pinned(name, spec) for name, spec in SERVING.items()]


def _pinned(name: str, otherwise: str) -> str:
    try:
        return f"{name}=={metadata.version(name).partition('+')[0]}"
    except metadata.PackageNotFoundError:
        return f"{name}{otherwise}"


def _save_model(folder: Path, settings: Mapping[str, Any]) -> None:
    """An MLflow model whose checkpoint folder is still empty: MLflow would copy the weights once more."""
    import mlflow.pyfunc
    import pandas as pd

    with tempfile.TemporaryDirectory() as staging:
        root = Path(staging)
        empty, code, settings_file = root / "checkpoint", root / "sd_mlflow", root / "settings.json"
        empty.mkdir()
        settings_file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        shutil.copytree(Path(__file__).parent, code, ignore=shutil.ignore_patterns(*_NOT_CARRIED))
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("entry.py")),
            code_paths=[str(code)],
            artifacts={"checkpoint": str(empty), "settings": str(settings_file)},
            signature=signature(),
            input_example=pd.DataFrame({PROMPT: EXAMPLE}),
            conda_env={
                "name": "sd_mlflow",
                "channels": ["conda-forge"],
                "dependencies": [f"python={platform.python_version()}", "pip", {"pip": requirements()}],
            },
        )


def _finish_mlmodel(folder: Path, written: manifest.Manifest) -> None:
    """Take this machine's paths out of `MLmodel`, and say what the package holds."""
    file = folder / "MLmodel"
    model = yaml.safe_load(file.read_text(encoding="utf-8"))
    pyfunc = model["flavors"]["python_function"]
    pyfunc["model_code_path"] = "entry.py"
    for artifact in pyfunc["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model["model_size_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model["metadata"] = {
        "task": "text-to-image",
        "checkpoint": written.name,
        "revision": written.revision,
        "dtype": written.dtype,
        "safety_checker": written.safety_checker,
        "digest": written.digest,
    }
    file.write_text(yaml.safe_dump(model, sort_keys=True), encoding="utf-8")
