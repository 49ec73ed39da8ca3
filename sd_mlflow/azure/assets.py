"""Models, environments and computes: what has to be at Azure before a deployment can name it."""

from __future__ import annotations

import re
from pathlib import Path

from azure.ai.ml import MLClient, load_compute, load_environment
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import Model
from azure.core.exceptions import ResourceNotFoundError

from sd_mlflow.azure.client import AzureError, Wait, errors, exists
from sd_mlflow.manifest import Manifest

#: Where a clone of the repository keeps the environments that its deployments name.
ENVIRONMENTS = Path("registry/environments")
_DIGEST = "digest"


def register(client: MLClient, package: Path, manifest: Manifest, name: str, version: str | None) -> Model:
    """The package of `manifest` as a model of `client`'s workspace or registry, of the next version if None.

    A version that holds the same package already is returned as it is: nothing is uploaded twice.
    Raises `AzureError`.
    """
    with errors(f"Registering {name}"):
        for model in _versions(client, name):
            if model.properties.get(_DIGEST) == manifest.digest and version in (None, model.version):
                return model
        return client.models.create_or_update(
            Model(
                path=package,
                type=AssetTypes.MLFLOW_MODEL,
                name=name,
                version=version,
                description=f"{manifest.name} in {manifest.dtype}: text prompts in, images out. By sd_mlflow.",
                tags={"task": "text-to-image", "dtype": manifest.dtype},
                properties={
                    _DIGEST: manifest.digest,
                    "checkpoint": manifest.name,
                    "revision": manifest.revision or "",
                },
            )
        )


def _versions(client: MLClient, name: str) -> list[Model]:
    try:
        # A listing may leave out what a version holds.
        return [client.models.get(name, model.version) for model in client.models.list(name=name)]
    except ResourceNotFoundError:
        return []


def ensure_environment(client: MLClient, reference: str) -> None:
    """Create the environment that `reference` (NAME:VERSION or NAME@latest) means, if it is not there.

    It is made from this repository's `registry/`, below the current folder. Raises `AzureError`.
    """
    parsed = re.fullmatch(r"(?:azureml:)?([^:@/]+)(?::([^@:/]+)|@latest)", reference)
    if parsed is None:  # of a registry, or by its whole id
        return
    name, version = parsed.groups()
    with errors(f"Environment {name}"):
        label = None if version else "latest"
        if exists(lambda: client.environments.get(name, version=version, label=label)):
            return
        spec = ENVIRONMENTS / name / "spec.yaml"
        if not spec.exists():
            raise AzureError(f"the workspace has no environment {name}, and there is no {spec} to make it from")
        client.environments.create_or_update(load_environment(spec))


def ensure_compute(client: MLClient, name: str, file: Path, wait: Wait) -> None:
    """Create the cluster `name` from `file`, if it is not there. Raises `AzureError`."""
    with errors(f"Compute {name}"):
        if not exists(lambda: client.compute.get(name)):
            cluster = load_compute(file, params_override=[{"name": name}])
            wait(f"Creating {name}", client.compute.begin_create_or_update(cluster))
