"""Models, code, environments, data and components, by version, in the workspace and in the registry."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stand_in import checks
from stand_in.cloud import Cloud
from stand_in.rest import AzureError, Request, Response, Routes, bad_request

#: Below a workspace or a registry.
routes = Routes()

_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}"
_MODEL_TYPES = ("custom_model", "mlflow_model", "triton_model")


def folder(cloud: Cloud, name: str) -> Path:
    """Where the files of the model or the code `name` lie, in a folder with the name that they were sent under."""
    properties = cloud.resources[name]["properties"]
    path = cloud.blobs.find(properties.get("modelUri") or properties["codeUri"])
    inside = list(path.iterdir()) if path.is_dir() else []
    # A container of its own holds the folder that was sent, not the files in it.
    whole_container = path.parent == cloud.blobs.container(path.name).parent
    return inside[0] if whole_container and len(inside) == 1 and inside[0].is_dir() else path


def list_containers(cloud: Cloud, request: Request, *, kind: str) -> Response:
    pattern = re.compile(re.escape(request.scope + kind) + "/([^/]+)/versions/")
    names = dict.fromkeys(match[1] for name in cloud.resources if (match := pattern.match(name)))
    return Response({"value": [_container(cloud, request, kind, name) for name in names]})


def get_container(cloud: Cloud, request: Request, *, kind: str, name: str) -> Response:
    return Response(_container(cloud, request, kind, name))


def put_container(cloud: Cloud, request: Request, *, kind: str, name: str) -> Response:
    archived = bool(checks.required(request.json(), "properties").get("isArchived"))
    for body in cloud.list(f"{request.scope}{kind}/{name}/versions"):
        body["properties"]["isArchived"] = archived
    return Response(_container(cloud, request, kind, name))


def list_versions(cloud: Cloud, request: Request, *, kind: str, name: str) -> Response:
    found = cloud.list(f"{request.scope}{kind}/{name}/versions")
    view = request.query.get("listViewType", "ActiveOnly")
    if view != "All":
        found = [body for body in found if bool(body["properties"].get("isArchived")) == (view == "ArchivedOnly")]
    if request.query.get("hash"):
        wanted = request.query["hash"]
        found = [body for body in found if body["properties"]["properties"].get("hash_sha256") == wanted]
    return Response({"value": found[: int(request.query.get("$top", len(found)))]})


def get_version(cloud: Cloud, request: Request, *, kind: str, name: str, version: str) -> Response:
    return Response(cloud.get(f"{request.scope}{kind}/{name}/versions/{version}"))


def put_version(cloud: Cloud, request: Request, *, kind: str, name: str, version: str) -> Response:
    for part in (name, version):
        if not re.fullmatch(_NAME, part):
            raise bad_request(f"{part} is not a valid asset name or version.")
    properties = checks.required(request.json(), "properties")
    if kind in _CHECKS:
        _CHECKS[kind](cloud, properties)
    full_name = f"{request.scope}{kind}/{name}/versions/{version}"
    old = cloud.resources.get(full_name, {}).get("properties", {})
    for key in ("modelUri", "codeUri", "image", "condaFile", "build"):
        if old and _bare(old.get(key)) != _bare(properties.get(key)):
            raise AzureError(409, "UserError", "Asset paths cannot be updated.")
    defaults = {"isArchived": False, "isAnonymous": False, "tags": {}, "properties": {}}
    known: dict[str, Any] = {"flavors": {}} if kind == "models" else {}
    sent = {key: value for key, value in properties.items() if value is not None}
    return Response(
        cloud.put(full_name, f"{kind}/versions", defaults | known | sent | {"provisioningState": "Succeeded"}),
        200 if old else 201,
    )


def delete_version(cloud: Cloud, request: Request, *, kind: str, name: str, version: str) -> Response:
    full_name = f"{request.scope}{kind}/{name}/versions/{version}"
    cloud.get(full_name)
    cloud.delete(full_name)
    return Response()


for _kind in ("models", "codes", "environments", "data", "components"):
    for _method, _path, _handler in (
        ("GET", f"/{_kind}", list_containers),
        ("GET", f"/{_kind}/{{name}}", get_container),
        ("PUT", f"/{_kind}/{{name}}", put_container),
        ("GET", f"/{_kind}/{{name}}/versions", list_versions),
        ("GET", f"/{_kind}/{{name}}/versions/{{version}}", get_version),
        ("PUT", f"/{_kind}/{{name}}/versions/{{version}}", put_version),
        ("DELETE", f"/{_kind}/{{name}}/versions/{{version}}", delete_version),
    ):
        routes.on(_method, _path)(partial(_handler, kind=_kind))


@routes.on("POST", "/codes/{name}/versions/{version}/startPendingUpload")
def start_upload(cloud: Cloud, request: Request, name: str, version: str) -> Response:
    return Response({"pendingUploadType": "TemporaryBlobReference", **_reference(cloud, str(uuid.uuid4()))})


@routes.on("PUT", "/tempdatarefs/{name}/versions/{version}")
def start_registry_upload(cloud: Cloud, request: Request, name: str, version: str) -> Response:
    asset = re.match(r"azureml://(registries/.+)", checks.required(request.json(), "assetId"))
    if asset and asset[1] in cloud.resources:
        raise AzureError(409, "UserError", f"The asset {asset[1]} exists already.")
    return Response(_reference(cloud, f"{name}-{uuid.uuid4()}".lower()))


@routes.on("POST", "/datarefs/{name}/versions/{version}")
def registry_download(cloud: Cloud, request: Request, name: str, version: str) -> Response:
    uri = checks.required(request.json(), "blobUri")
    cloud.blobs.find(uri)
    return Response(_reference(cloud, uri.split("/")[3]))


def _reference(cloud: Cloud, container: str) -> dict[str, Any]:
    """A container and a SAS for it, in the words of workspaces and of registries."""
    uri = cloud.blobs.url(container)
    credential = {"credentialType": "SAS", "sasUri": f"{uri}?{cloud.blobs.sas(container)}"}
    return {"blobReferenceForConsumption": {"blobUri": uri, "storageAccountArmId": "", "credential": credential}}


def _container(cloud: Cloud, request: Request, kind: str, name: str) -> dict[str, Any]:
    versions = cloud.list(f"{request.scope}{kind}/{name}/versions")
    if not versions:
        raise AzureError(
            404, "UserError", f"{kind.rstrip('s').capitalize()} container with name: {name} not found."
        )
    numbers = [int(body["name"]) for body in versions if body["name"].isdigit()]
    archived = all(body["properties"].get("isArchived") for body in versions)
    properties = {
        "latestVersion": versions[0]["name"],
        "nextVersion": str(max(numbers, default=0) + 1),
        "isArchived": archived,
        "tags": {},
        "properties": {},
    }
    return {"id": cloud.arm_id(f"{request.scope}{kind}/{name}"), "name": name, "properties": properties} | {
        "systemData": versions[0]["systemData"]
    }


def _check_model(cloud: Cloud, properties: dict[str, Any]) -> None:
    path = cloud.blobs.find(checks.required(properties, "modelUri", "properties"))
    kind = properties.get("modelType") or "custom_model"
    if kind not in _MODEL_TYPES:
        raise bad_request(f"The model type {kind} is not one of {', '.join(_MODEL_TYPES)}.")
    if kind == "mlflow_model" and not [*path.glob("MLmodel"), *path.glob("*/MLmodel")]:
        raise bad_request("An MLflow model must have a file MLmodel in its folder.")


def _check_code(cloud: Cloud, properties: dict[str, Any]) -> None:
    cloud.blobs.find(checks.required(properties, "codeUri", "properties"))


def _check_environment(cloud: Cloud, properties: dict[str, Any]) -> None:
    build = properties.get("build") or {}
    if bool(build) == bool(properties.get("image")):
        raise bad_request("An environment has either an image or a build context.")
    if build:
        context = cloud.blobs.find(checks.required(build, "contextUri", "properties.build"))
        dockerfile = build.get("dockerfilePath") or "Dockerfile"
        if not [*context.glob(dockerfile), *context.glob(f"*/{dockerfile}")]:
            raise bad_request(f"The build context has no {dockerfile}.")


_CHECKS: dict[str, Callable[[Cloud, dict[str, Any]], None]] = {
    "models": _check_model,
    "codes": _check_code,
    "environments": _check_environment,
}


def _bare(uri: Any) -> Any:
    """A URI without its query, which may carry a signature."""
    return uri.partition("?")[0].rstrip("/") if isinstance(uri, str) else uri
