"""Batch endpoints, their deployments, and what invoking one starts."""

from __future__ import annotations

import re
import uuid
from typing import Any

from stand_in import assets, checks, jobs, login
from stand_in.cloud import Cloud
from stand_in.container import Image
from stand_in.mini_batches import BatchRun, Settings
from stand_in.names import INFERENCE, REGION
from stand_in.online import check_name_is_free, delete
from stand_in.rest import AzureError, Request, Response, Routes, bad_request

#: Below the workspace.
routes = Routes()

_ACTIONS = ("AppendRow", "SummaryOnly")
_INPUT_TYPES = ("UriFolder", "UriFile")


@routes.on("GET", "/batchEndpoints")
def list_endpoints(cloud: Cloud, request: Request) -> Response:
    return Response({"value": cloud.list("batchEndpoints")})


@routes.on("GET", "/batchEndpoints/{endpoint}")
def get_endpoint(cloud: Cloud, request: Request, endpoint: str) -> Response:
    return Response(cloud.get(f"batchEndpoints/{endpoint}"))


@routes.on("PUT", "/batchEndpoints/{endpoint}")
def put_endpoint(cloud: Cloud, request: Request, endpoint: str) -> Response:
    body = request.json()
    sent = checks.required(body, "properties")
    checks.required(body, "location")
    checks.name(endpoint, "Endpoint")
    if str(checks.required(sent, "authMode", "properties")).lower() != "aadtoken":
        raise bad_request("Batch endpoints have the AuthMode AADToken alone.")
    name = f"batchEndpoints/{endpoint}"
    default = (sent.get("defaults") or {}).get("deploymentName")
    if default and f"{name}/deployments/{default}" not in cloud.resources:
        raise bad_request(f"The default deployment {default} does not exist.")
    known = name in cloud.resources
    if not known:
        check_name_is_free(cloud, endpoint)
    properties = {
        **sent,
        "authMode": "AADToken",
        "defaults": {"deploymentName": default},
        "scoringUri": f"https://{endpoint}.{INFERENCE}/jobs",
        "provisioningState": "Updating" if known else "Creating",
    }
    result = cloud.put(name, "batchEndpoints", properties, location=REGION, tags=body.get("tags") or {})
    return Response(result, 200 if known else 201, cloud.begin(name, lambda: None))


@routes.on("DELETE", "/batchEndpoints/{endpoint}")
def delete_endpoint(cloud: Cloud, request: Request, endpoint: str) -> Response:
    return delete(cloud, f"batchEndpoints/{endpoint}")


@routes.on("GET", "/batchEndpoints/{endpoint}/jobs")
@routes.on("GET", "/batchEndpoints/{endpoint}/deployments/{deployment}/jobs")
def list_jobs(cloud: Cloud, request: Request, endpoint: str, deployment: str | None = None) -> Response:
    return Response({"value": [jobs.summary(cloud, job) for job in jobs.of(cloud, endpoint, deployment)]})


@routes.on("GET", "/batchEndpoints/{endpoint}/deployments")
def list_deployments(cloud: Cloud, request: Request, endpoint: str) -> Response:
    return Response({"value": cloud.list(f"batchEndpoints/{endpoint}/deployments")})


@routes.on("GET", "/batchEndpoints/{endpoint}/deployments/{deployment}")
def get_deployment(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    return Response(cloud.get(f"batchEndpoints/{endpoint}/deployments/{deployment}"))


@routes.on("DELETE", "/batchEndpoints/{endpoint}/deployments/{deployment}")
def delete_deployment(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    return delete(cloud, f"batchEndpoints/{endpoint}/deployments/{deployment}")


@routes.on("PUT", "/batchEndpoints/{endpoint}/deployments/{deployment}")
def put_deployment(cloud: Cloud, request: Request, endpoint: str, deployment: str) -> Response:
    cloud.get(f"batchEndpoints/{endpoint}")
    checks.name(deployment, "Deployment")
    body = request.json()
    properties = checks.required(body, "properties")
    checks.required(body, "location")
    _check_deployment(cloud, properties)
    cloud.strike("deployment")
    name = f"batchEndpoints/{endpoint}/deployments/{deployment}"
    known = name in cloud.resources
    given = {key: value for key, value in properties.items() if value is not None}
    properties = {"environmentVariables": {}, "properties": {}} | given
    properties["provisioningState"] = "Updating" if known else "Creating"
    result = cloud.put(name, "deployments", properties, location=REGION, tags=body.get("tags") or {})
    return Response(result, 200 if known else 201, cloud.begin(name, lambda: None))


def _check_deployment(cloud: Cloud, properties: dict[str, Any]) -> None:
    cloud.resolve(checks.required(properties, "compute", "properties"), "computes")
    cloud.resolve(_model(properties), "models")
    code = checks.required(properties, "codeConfiguration", "properties")
    source = assets.folder(cloud, cloud.resolve(checks.required(code, "codeId", "codeConfiguration"), "codes"))
    script = checks.required(code, "scoringScript", "codeConfiguration")
    if not (source / script).is_file():
        raise bad_request(f"The scoring script {script} is not in the code.")
    cloud.resolve(checks.required(properties, "environmentId", "properties"), "environments")
    if (properties.get("outputAction") or "AppendRow") not in _ACTIONS:
        raise bad_request(f"OutputAction {properties['outputAction']} is not one of {', '.join(_ACTIONS)}.")
    if ((properties.get("resources") or {}).get("instanceCount") or 1) < 1:
        raise bad_request("The instance count must be at least 1.")
    _settings(properties)


def _model(properties: dict[str, Any]) -> str:
    reference: str = checks.required(checks.required(properties, "model", "properties"), "assetId", "model")
    return reference


def _settings(properties: dict[str, Any]) -> Settings:
    """The settings that a deployment, or a deployment and an invocation, give; raises `AzureError`."""
    retries = properties.get("retrySettings") or {}
    default = Settings()

    def value(source: dict[str, Any], key: str, otherwise: int) -> int:
        return otherwise if source.get(key) is None else int(source[key])

    settings = Settings(
        mini_batch_size=value(properties, "miniBatchSize", default.mini_batch_size),
        max_retries=value(retries, "maxRetries", default.max_retries),
        timeout=checks.seconds(retries.get("timeout"), default.timeout),
        error_threshold=value(properties, "errorThreshold", default.error_threshold),
        append_row=(properties.get("outputAction") or "AppendRow") == "AppendRow",
        output_file_name=properties.get("outputFileName") or default.output_file_name,
    )
    if settings.mini_batch_size < 1 or settings.max_retries < 0 or settings.error_threshold < -1:
        raise bad_request("MiniBatchSize must be at least 1, MaxRetries at least 0, ErrorThreshold at least -1.")
    if settings.timeout <= 0 or "/" in settings.output_file_name:
        raise bad_request("The retry time-out must be positive, and OutputFileName must be a file's name.")
    return settings


def invoke(cloud: Cloud, request: Request, endpoint: str) -> Response:
    """Start a job of the deployment that is asked for, or of the default one; raises `AzureError`."""
    login.check(cloud, request)
    if (request.method, request.path) != ("POST", "/jobs"):
        raise AzureError(404, "NotFound", f"There is nothing at {request.path}.")
    name = f"batchEndpoints/{endpoint}"
    default = (cloud.resources[name]["properties"].get("defaults") or {}).get("deploymentName")
    deployment = request.headers.get("azureml-model-deployment") or default
    if not deployment:
        raise bad_request(f"The endpoint {endpoint} has no default deployment, and the request names none.")
    properties = cloud.get(f"{name}/deployments/{deployment}")["properties"]
    given = {_lower(key): value for key, value in checks.required(request.json(), "properties").items()}
    uri = _input(given.get("inputData") or {})
    if given.get("outputData") or given.get("outputDataset"):
        raise AzureError(400, "StandIn", "The stand-in puts a job's output into the default datastore alone.")
    retries = {**(properties.get("retrySettings") or {}), **(given.get("retrySettings") or {})}
    settings = _settings(properties | given | {"retrySettings": retries})
    source = cloud.blobs.find(uri)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    job, child = f"batchjob-{uuid.uuid4()}", str(uuid.uuid4())
    run = BatchRun(
        image=_image(cloud, properties, job),
        files=files,
        output=cloud.blobs.container("azureml-blobstore") / "azureml" / child / "score",
        log=jobs.log_of(cloud, child),
        settings=settings,
        package_environment=cloud.package_environment,
    )
    with cloud.lock:
        return Response(jobs.start(cloud, job, child, endpoint, deployment, run), 201)


def _input(inputs: dict[str, Any]) -> str:
    """Where the one input of an invocation is; raises `AzureError`."""
    if len(inputs) != 1:
        raise bad_request(f"A model deployment takes one input, not {len(inputs)}.")
    (given,) = inputs.values()
    if given.get("jobInputType") not in _INPUT_TYPES:
        raise bad_request(f"The input type {given.get('jobInputType')} is not one of {', '.join(_INPUT_TYPES)}.")
    uri: str = checks.required(given, "uri", "inputData")
    return uri


def _image(cloud: Cloud, properties: dict[str, Any], job: str) -> Image:
    model, code = cloud.resolve(_model(properties), "models"), properties["codeConfiguration"]
    source = assets.folder(cloud, cloud.resolve(code["codeId"], "codes"))
    model_name, _, version = model.split("/")[-3:]
    folder, variables = cloud.folder / "machines" / job, properties.get("environmentVariables") or {}
    return Image.build(
        folder, assets.folder(cloud, model), model_name, version, source, code["scoringScript"], variables
    )


def _lower(key: str) -> str:
    return re.sub(r"^[A-Z]", lambda match: match[0].lower(), key)
