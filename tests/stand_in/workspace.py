"""The workspace itself: its description, datastores, compute clusters, operations, and the registry's address."""

from __future__ import annotations

import re
from typing import Any

from stand_in import checks
from stand_in.blobs import ACCOUNT, DATASTORES, DOMAIN
from stand_in.cloud import Cloud
from stand_in.names import (
    API,
    REGION,
    REGISTRY,
    RESOURCE_GROUP,
    SUBSCRIPTION,
    TENANT,
    WORKSPACE,
    WORKSPACE_ARM_ID,
    WORKSPACE_ID,
)
from stand_in.rest import AzureError, Request, Response, Routes

#: Below `/subscriptions/S/resourceGroups/G/providers/Microsoft.MachineLearningServices/workspaces/W`.
routes = Routes()
#: Whole paths.
global_routes = Routes()


@routes.on("GET", "/")
def workspace(cloud: Cloud, request: Request) -> Response:
    return Response(
        {
            "id": WORKSPACE_ARM_ID,
            "name": WORKSPACE,
            "type": "Microsoft.MachineLearningServices/workspaces",
            "location": REGION,
            "kind": "Default",
            "tags": {},
            "identity": {"type": "SystemAssigned", "tenantId": TENANT},
            "sku": {"name": "Basic", "tier": "Basic"},
            "properties": {
                "friendlyName": WORKSPACE,
                "workspaceId": WORKSPACE_ID,
                "discoveryUrl": f"https://{API}/discovery",
                "mlFlowTrackingUri": f"azureml://{API}/mlflow/v1.0{WORKSPACE_ARM_ID}",
                "storageAccount": f"/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}",
                "provisioningState": "Succeeded",
                "publicNetworkAccess": "Enabled",
            },
        }
    )


@global_routes.on("GET", "/discovery/workspaces/{workspace_id}")
@global_routes.on("GET", "/discovery")
def discovery(cloud: Cloud, request: Request, **_: str) -> Response:
    services = ("api", "history", "experimentation", "hyperdrive", "modelmanagement", "notebooks", "studio")
    return Response(dict.fromkeys(services, f"https://{API}"))


@global_routes.on("GET", "/registrymanagement/v1.0/registries/{registry}/discovery")
def registry(cloud: Cloud, request: Request, registry: str) -> Response:
    if registry not in (REGISTRY, "azureml"):
        raise AzureError(404, "UserError", f"Registry {registry} was not found.")
    return Response(
        {
            "registryName": registry,
            "primaryRegion": REGION,
            "regions": [REGION],
            "primaryRegionResourceProviderUri": f"https://{API}/",
            "resourceGroup": RESOURCE_GROUP,
            "subscriptionId": SUBSCRIPTION,
            "registryFqdns": {REGION: {"uri": f"https://{API}/"}},
        }
    )


@global_routes.on("GET", "/subscriptions/{subscription}/providers/{provider}/locations/{region}/{kind}/{id_}")
def operation(cloud: Cloud, request: Request, kind: str, id_: str, **_: str) -> Response:
    if kind not in ("mfeOperationsStatus", "mfeOperationsResults"):
        raise AzureError(404, "NotFound", f"There is nothing at {request.path}.")
    return cloud.operation(id_)


def _datastore(cloud: Cloud, name: str) -> dict[str, Any]:
    if name not in DATASTORES:
        raise AzureError(404, "UserError", f"Could not find datastore: {name}.")
    properties = {
        "datastoreType": "AzureBlob",
        "accountName": ACCOUNT,
        "containerName": DATASTORES[name],
        "endpoint": DOMAIN.removeprefix("blob."),
        "protocol": "https",
        "isDefault": name == "workspaceblobstore",
        "credentials": {"credentialsType": "Sas"},
        "tags": {},
        "properties": {},
    }
    return {"id": f"{WORKSPACE_ARM_ID}/datastores/{name}", "name": name, "properties": properties}


@routes.on("GET", "/datastores")
def list_datastores(cloud: Cloud, request: Request) -> Response:
    stores = [_datastore(cloud, name) for name in DATASTORES]
    if request.query.get("isDefault", "").lower() == "true":
        stores = stores[:1]
    return Response({"value": stores})


@routes.on("GET", "/datastores/{name}")
def datastore(cloud: Cloud, request: Request, name: str) -> Response:
    return Response(_datastore(cloud, name))


@routes.on("POST", "/datastores/{name}/listSecrets")
def datastore_secrets(cloud: Cloud, request: Request, name: str) -> Response:
    container = _datastore(cloud, name)["properties"]["containerName"]
    return Response({"secretsType": "Sas", "sasToken": cloud.blobs.sas(container)})


@routes.on("GET", "/computes")
def computes(cloud: Cloud, request: Request) -> Response:
    return Response({"value": cloud.list("computes")})


@routes.on("GET", "/computes/{name}")
def compute(cloud: Cloud, request: Request, name: str) -> Response:
    return Response(cloud.get(f"computes/{name}"))


@routes.on("PUT", "/computes/{name}")
def create_compute(cloud: Cloud, request: Request, name: str) -> Response:
    properties = checks.required(request.json(), "properties")
    if properties.get("computeType") != "AmlCompute":
        raise AzureError(400, "BadRequest", "The stand-in has compute of the type AmlCompute alone.")
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{0,22}[a-zA-Z0-9]", name):
        message = f"Compute name {name} must have 2 to 24 letters, digits and hyphens, beginning with a letter."
        raise AzureError(400, "BadRequest", message)
    details = checks.required(properties, "properties", "properties")
    checks.required(details, "vmSize", "properties.properties")
    scale = details.get("scaleSettings") or {}
    if scale.get("minNodeCount", 0) > scale.get("maxNodeCount", 1):
        raise AzureError(400, "BadRequest", "minNodeCount must not be greater than maxNodeCount.")
    cloud.strike("compute")
    location = request.json().get("location") or REGION
    body = cloud.put(
        f"computes/{name}", "computes", {**properties, "provisioningState": "Creating"}, location=location
    )
    return Response(body, 201, cloud.begin(f"computes/{name}", lambda: None))


@routes.on("DELETE", "/computes/{name}")
def delete_compute(cloud: Cloud, request: Request, name: str) -> Response:
    cloud.get(f"computes/{name}")
    return Response(status=202, headers=cloud.begin(f"computes/{name}", lambda: cloud.delete(f"computes/{name}")))
