"""What online and batch endpoints have in common: read their YAML, create both halves, delete them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.ai.ml import MLClient, load_batch_endpoint, load_online_deployment, load_online_endpoint

# The public loader refuses `settings:` (Azure/azure-sdk-for-python#33044); this is what `az ml` uses.
from azure.ai.ml.entities._load_functions import load_model_batch_deployment
from azure.core.exceptions import AzureError as SDKError

from sd_mlflow.azure.assets import ensure_environment
from sd_mlflow.azure.client import AzureError, Wait, errors, exists

#: Lines of a container's log that are shown.
_LOG_LINES = 40


@dataclass(frozen=True)
class Kind:
    """Online or batch: the client's operations, the loaders, and how a deployment gets its first calls."""

    name: str
    load_endpoint: Callable[..., Any]
    load_deployment: Callable[..., Any]
    route: Callable[[Any, str], None]

    def endpoints(self, client: MLClient) -> Any:
        """The SDK's operations on endpoints."""
        return getattr(client, f"{self.name}_endpoints")

    def deployments(self, client: MLClient) -> Any:
        """The SDK's operations on deployments."""
        return getattr(client, f"{self.name}_deployments")


def _first_traffic(endpoint: Any, deployment: str) -> None:
    if not any((endpoint.traffic or {}).values()):
        endpoint.traffic = {deployment: 100}


def _become_default(endpoint: Any, deployment: str) -> None:
    endpoint.defaults = {"deployment_name": deployment}


#: The first deployment of an online endpoint gets its traffic; the newest of a batch endpoint is its default.
ONLINE = Kind("online", load_online_endpoint, load_online_deployment, _first_traffic)
BATCH = Kind("batch", load_batch_endpoint, load_model_batch_deployment, _become_default)


def load(
    kind: Kind, endpoint_file: Path, deployment_file: Path, endpoint: str | None, deployment: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Both YAML files, with the endpoint's name and keys of the deployment replaced where not None.

    Raises `AzureError` where a file is missing or not what Azure takes.
    """
    with errors(f"Reading {endpoint_file} and {deployment_file}"):
        for file in (endpoint_file, deployment_file):
            if not file.exists():
                raise AzureError(f"{file} is missing: work in a clone of the repository, or name another file")
        made = kind.load_endpoint(endpoint_file, params_override=[{"name": endpoint}] if endpoint else [])
        override = {key: value for key, value in deployment.items() if value is not None}
        override["endpoint_name"] = made.name
        return made, kind.load_deployment(deployment_file, params_override=[override])


def deploy(kind: Kind, client: MLClient, endpoint: Any, deployment: Any, wait: Wait) -> Any:
    """Create or update both, route calls to the deployment as its kind does; the endpoint as it then is.

    What was created here is deleted again if it fails. Raises `AzureError`, with the container's log.
    """
    endpoints, deployments = kind.endpoints(client), kind.deployments(client)
    if isinstance(deployment.environment, str):
        ensure_environment(client, deployment.environment)
    created: list[str] = []
    try:
        with errors(f"Endpoint {endpoint.name}"):
            if not exists(lambda: endpoints.get(endpoint.name)):
                created.append(endpoint.name)
                wait(f"Creating {endpoint.name}", endpoints.begin_create_or_update(endpoint))
        with errors(f"Deployment {deployment.name}"):
            if not exists(lambda: deployments.get(deployment.name, endpoint.name)):
                created.append(deployment.name)
            wait(f"Deploying {deployment.name}", deployments.begin_create_or_update(deployment))
        with errors(f"Routing of {endpoint.name}"):
            there = endpoints.get(endpoint.name)
            kind.route(there, deployment.name)
            return wait("Routing calls", endpoints.begin_create_or_update(there))
    except AzureError as error:
        log = _log(kind, client, endpoint.name, deployment.name) if deployment.name in created else ""
        left = _undo(kind, client, endpoint.name, deployment.name, created, wait)
        raise AzureError(f"{error}{left}", log) from None


def _log(kind: Kind, client: MLClient, endpoint: str, deployment: str) -> str:
    """The end of the container's log."""
    if kind is BATCH:  # its containers start with a job
        return ""
    try:
        log = str(client.online_deployments.get_logs(deployment, endpoint, lines=1000))
    except SDKError:
        return ""
    # After a stack trace, Azure's server lists every file that it was given.
    told = log.partition("Model Directory Contents:")[0].splitlines()
    return "\n".join(told[-_LOG_LINES:])


def _undo(kind: Kind, client: MLClient, endpoint: str, deployment: str, created: list[str], wait: Wait) -> str:
    """Delete what was `created`; says what is left if that fails too."""
    try:
        if endpoint in created:  # its deployments go with it
            delete(kind, client, endpoint, None, wait)
        elif deployment in created:
            delete(kind, client, endpoint, deployment, wait)
    except AzureError as error:
        return f"; and {' and '.join(created)} may be left at Azure ({error})"
    return ""


def delete(kind: Kind, client: MLClient, endpoint: str, deployment: str | None, wait: Wait) -> None:
    """Delete a deployment, or the endpoint with all of them. Raises `AzureError`."""
    with errors(f"Deleting {deployment or endpoint}"):
        if deployment:
            poller = kind.deployments(client).begin_delete(deployment, endpoint)
        else:
            poller = kind.endpoints(client).begin_delete(endpoint)
        wait(f"Deleting {deployment or endpoint}", poller)
