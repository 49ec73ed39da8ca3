"""Online endpoints and their deployments, as the resource manager handles them."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

from stand_in import assets, checks, faults
from stand_in.cloud import Cloud
from stand_in.container import Container, Image
from stand_in.names import INFERENCE, REGION
from stand_in.rest import AzureError, Request, Response, Routes, bad_request

#: Below the workspace.
routes = Routes()

_AUTH_MODES = {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}
_PROBE_SECONDS = {"initialDelay": 10.0, "period": 10.0, "failureThreshold": 30}


@routes.on("GET", "/onlineEndpoints")
def list_endpoints(cloud: Cloud, request: Request) -> Response:
    return Response({"value": cloud.list("onlineEndpoints")})


@routes.on("GET", "/onlineEndpoints/{endpoint}")
def get_endpoint(cloud: Cloud, request: Request, endpoint: str) -> Response:
    return Response(cloud.get(f"onlineEndpoints/{endpoint}"))


@routes.on("PUT", "/onlineEndpoints/{endpoint}")
def put_endpoint(cloud: Cloud, request: Request, endpoint: str) -> Response:
    body = request.json()
    sent = checks.required(body, "properties")
    checks.name(endpoint, "Endpoint")
    checks.required(body, "location")
    name = f"onlineEndpoints/{endpoint}"
    cloud.settled(name)
    if sent.get("compute"):
        cloud.resolve(sent["compute"], "computes")
        raise bad_request("The stand-in has managed endpoints alone: no compute of its is a Kubernetes cluster.")
    mode = _AUTH_MODES.get(str(checks.required(sent, "authMode", "properties")).lower())
    if mode is None:
        raise bad_request(f"AuthMode {sent['authMode']} is not one of {', '.join(_AUTH_MODES.values())}.")
    deployments = {each["name"] for each in cloud.list(f"{name}/deployments")}
    checks.traffic(sent.get("traffic") or {}, deployments)
    if sent.get("mirrorTraffic"):
        raise AzureError(400, "StandIn", "The stand-in does not mirror traffic.")
    if name not in cloud.resources:
        check_name_is_free(cloud, endpoint)
    properties = {
        **sent,
        "authMode": mode,
        "traffic": sent.get("traffic") or {},
        "mirrorTraffic": {},
        "scoringUri": f"https://{endpoint}.{INFERENCE}/score",
        "swaggerUri": f"https://{endpoint}.{INFERENCE}/swagger.json",
        "provisioningState": "Updating" if name in cloud.resources else "Creating",
    }
    known = name in cloud.resources
    result = cloud.put(name, "onlineEndpoints", properties, location=REGION, tags=body.get("tags") or {})
    if not known:
        cloud.keys[endpoint] = {"primaryKey": cloud.secret(), "secondaryKey": cloud.secret()}
    result["identity"] = body.get("identity") or {"type": "SystemAssigned"}
    result["kind"] = "Managed"
    return Response(result, 200 if known else 201, cloud.begin(name, lambda: None))


def check_name_is_free(cloud: Cloud, endpoint: str) -> None:
    """Endpoint names are part of the region's host names: online and batch share them."""
    cloud.strike("endpoint")
    if {f"onlineEndpoints/{endpoint}", f"batchEndpoints/{endpoint}"} & cloud.resources.keys():
        raise faults.name_taken().error


@routes.on("DELETE", "/onlineEndpoints/{endpoint}")
def delete_endpoint(cloud: Cloud, request: Request, endpoint: str) -> Response:
    return delete(cloud, f"onlineEndpoints/{endpoint}")


def delete(cloud: Cloud, name: str) -> Response:
    """Begin to delete the resource `name`; what does not exist is deleted already."""
    if name not in cloud.resources:
        return Response(status=204)
    cloud.resources[name]["properties"]["provisioningState"] = "Deleting"
    return Response(status=202, headers=cloud.begin(name, lambda: cloud.delete(name)))


@routes.on("POST", "/onlineEndpoints/{endpoint}/listKeys")
def list_keys(cloud: Cloud, request: Request, endpoint: str) -> Response:
    if cloud.get(f"onlineEndpoints/{endpoint}")["properties"]["authMode"] != "Key":
        raise bad_request(f"The endpoint {endpoint} does not use keys.")
    return Response(cloud.keys[endpoint])


@routes.on("POST", "/onlineEndpoints/{endpoint}/regenerateKeys")
def regenerate_keys(cloud: Cloud, request: Request, endpoint: str) -> Response:
    cloud.get(f"onlineEndpoints/{endpoint}")
    which = str(checks.required(request.json(), "keyType")).lower() + "Key"
    # The SDK sends the old key along as `keyValue`; a new one is what was asked for.
    cloud.keys[endpoint][which] = cloud.secret()
    return Response(status=202, headers=cloud.begin(f"onlineEndpoints/{endpoint}", lambda: None))


@routes.on("POST", "/onlineEndpoints/{endpoint}/token")
def token(cloud: Cloud, request: Request, endpoint: str) -> Response:
    cloud.get(f"onlineEndpoints/{endpoint}")
    # The first key does for a token too: whoever has it may invoke.
    value = cloud.keys[endpoint]["primaryKey"]
    return Response({"accessToken": value, "expiryTimeUtc": 0, "refreshAfterTimeUtc": 0, "tokenType": "Bearer"})


@routes.on("GET", "/onlineEndpoints/{endpoint}/deployments")
def list_deployments(cloud: Cloud, request: Request, endpoint: str) -> Response:
    return Response({"value": cloud.list(f"onlineEndpoints/{endpoint}/deployments")})


@routes.on("GET", "/onlineEndpoints/{endpoint}/deployments/{deployment}")
def get_deployment(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    return Response(cloud.get(f"onlineEndpoints/{endpoint}/deployments/{deployment}"))


@routes.on("PUT", "/onlineEndpoints/{endpoint}/deployments/{deployment}")
def put_deployment(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    name = f"onlineEndpoints/{endpoint}/deployments/{deployment}"
    cloud.get(f"onlineEndpoints/{endpoint}")
    cloud.settled(f"onlineEndpoints/{endpoint}")
    cloud.settled(name)
    checks.name(deployment, "Deployment")
    body = request.json()
    properties = checks.required(body, "properties")
    checks.required(body, "location")
    _check_deployment(cloud, properties)
    if ((body.get("sku") or {}).get("capacity") or 0) < 1:
        raise bad_request("The sku's capacity, the number of instances, must be at least 1.")
    cloud.strike("deployment")
    known = name in cloud.resources
    defaults = {"scaleSettings": {"scaleType": "Default"}, "environmentVariables": {}, "properties": {}}
    given = {key: value for key, value in properties.items() if value is not None}
    properties = defaults | given | {"provisioningState": "Updating" if known else "Creating"}
    result = cloud.put(
        name, "deployments", properties, location=REGION, tags=body.get("tags") or {}, sku=body["sku"]
    )
    image = _image(cloud, name, properties)
    return Response(result, 200 if known else 201, cloud.begin(name, lambda: _deploy(cloud, name, image)))


def _check_deployment(cloud: Cloud, properties: dict[str, Any]) -> None:
    if checks.required(properties, "endpointComputeType", "properties") != "Managed":
        raise bad_request("The stand-in runs managed deployments alone: it has no Kubernetes cluster.")
    checks.instance_type(properties.get("instanceType"))
    checks.request_settings(properties.get("requestSettings") or {})
    for which in ("livenessProbe", "readinessProbe"):
        checks.probe(properties.get(which), which)
    model = cloud.resolve(checks.required(properties, "model", "properties"), "models")
    code = properties.get("codeConfiguration")
    if properties.get("environmentId"):
        cloud.resolve(properties["environmentId"], "environments")
    if code:
        checks.required(properties, "environmentId", "properties")
        source = assets.folder(cloud, cloud.resolve(checks.required(code, "codeId", "codeConfiguration"), "codes"))
        script = checks.required(code, "scoringScript", "codeConfiguration")
        if not (source / script).is_file():
            raise bad_request(f"The scoring script {script} is not in the code.")
    elif cloud.resources[model]["properties"].get("modelType") != "mlflow_model":
        raise bad_request("A model that is not an MLflow model needs a code configuration with a scoring script.")


def _image(cloud: Cloud, name: str, properties: dict[str, Any]) -> Image:
    model = cloud.resolve(properties["model"], "models")
    code = properties.get("codeConfiguration")
    if code:
        source, script = assets.folder(cloud, cloud.resolve(code["codeId"], "codes")), code["scoringScript"]
    else:
        source, script = Path(__file__).with_name("no_code"), "score.py"
    folder = cloud.folder / "machines" / f"{name.replace('/', '-')}-{uuid.uuid4().hex[:8]}"
    variables = properties.get("environmentVariables") or {}
    model_name, _, version = model.split("/")[-3:]
    return Image.build(folder, assets.folder(cloud, model), model_name, version, source, script, variables)


def _deploy(cloud: Cloud, name: str, image: Image) -> None:
    """Start the container, in the place of the one that ran before; raises as the operation ends."""
    crash = cloud.take("container")
    if crash:
        image.crash(crash.error.message)
    properties = cloud.resources[name]["properties"]
    cloud.logs[name] = image.folder / "container.log"
    container = Container(image, cloud.logs[name], cloud.package_environment)
    cloud.keep(name, container.stop)()
    try:
        container.wait(_patience(properties.get("readinessProbe") or {}))
    except AzureError:
        container.stop()
        raise
    settings = properties.get("requestSettings") or {}
    capacity = cloud.resources[name]["sku"]["capacity"] * (settings.get("maxConcurrentRequestsPerInstance") or 1)
    # Azure lets twice as many in as the deployment says it can take, and turns the others away.
    cloud.servers[name] = (container.url, threading.BoundedSemaphore(2 * capacity))


def _patience(probe: dict[str, Any]) -> float:
    initial, period = (checks.seconds(probe.get(key), _PROBE_SECONDS[key]) for key in ("initialDelay", "period"))
    return initial + period * (probe.get("failureThreshold") or _PROBE_SECONDS["failureThreshold"])


@routes.on("POST", "/onlineEndpoints/{endpoint}/deployments/{deployment}/getLogs")
def get_logs(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    name = f"onlineEndpoints/{endpoint}/deployments/{deployment}"
    cloud.get(name)
    log = cloud.logs.get(name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log and log.exists() else []
    return Response({"content": "\n".join(lines[-int(request.json().get("tail") or 50) :])})


@routes.on("DELETE", "/onlineEndpoints/{endpoint}/deployments/{deployment}")
def delete_deployment(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    share = cloud.get(f"onlineEndpoints/{endpoint}")["properties"]["traffic"].get(deployment, 0)
    if share:
        raise bad_request(
            f"The deployment {deployment} cannot be deleted: it has {share}% of the traffic of its endpoint."
        )
    cloud.settled(f"onlineEndpoints/{endpoint}/deployments/{deployment}")
    return delete(cloud, f"onlineEndpoints/{endpoint}/deployments/{deployment}")
