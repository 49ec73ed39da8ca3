"""The scoring hosts, `NAME.REGION.inference.ml.azure.com`: who may call, what answers, and for how long."""

from __future__ import annotations

import random
import urllib.error
import urllib.request

from sd_mlflow.scoring.local import loopback
from stand_in import batch, checks
from stand_in.cloud import Cloud
from stand_in.names import INFERENCE
from stand_in.rest import AzureError, Request, Response

_FORWARDED = ("content-type", "accept", "x-ms-request-id", "x-ms-client-request-id", "x-request-id")


def answer(cloud: Cloud, request: Request) -> Response:
    """Answer a call of an endpoint; raises `AzureError`."""
    endpoint = request.host.removesuffix(f".{INFERENCE}")
    if f"batchEndpoints/{endpoint}" in cloud.resources:
        return batch.invoke(cloud, request, endpoint)
    if f"onlineEndpoints/{endpoint}" not in cloud.resources:
        raise AzureError(404, "NotFound", f"There is no endpoint {endpoint}.")
    _authorize(cloud, request, endpoint)
    deployment = _route(cloud, request, endpoint)
    name = f"onlineEndpoints/{endpoint}/deployments/{deployment}"
    if name not in cloud.servers:
        raise AzureError(503, "NoHealthyUpstream", f"The deployment {deployment} has no healthy instance.")
    url, places = cloud.servers[name]
    if not places.acquire(blocking=False):
        raise AzureError(429, "TooManyRequests", "Too many requests are pending.", {"Retry-After": "1"})
    try:
        settings = cloud.resources[name]["properties"].get("requestSettings") or {}
        return _forward(request, url, deployment, checks.seconds(settings.get("requestTimeout"), 5))
    finally:
        places.release()


def _authorize(cloud: Cloud, request: Request, endpoint: str) -> None:
    mode = cloud.resources[f"onlineEndpoints/{endpoint}"]["properties"]["authMode"]
    if mode == "AADToken":
        allowed = request.bearer.count(".") == 2 and request.bearer in cloud.secrets
    else:
        allowed = request.bearer in cloud.keys[endpoint].values()
    if not allowed:
        raise AzureError(401, "key_auth_bad_header_missing", "The key or the token of the request is not valid.")


def _route(cloud: Cloud, request: Request, endpoint: str) -> str:
    asked = request.headers.get("azureml-model-deployment")
    if asked:
        if f"onlineEndpoints/{endpoint}/deployments/{asked}" not in cloud.resources:
            raise AzureError(404, "NotFound", f"The endpoint {endpoint} has no deployment {asked}.")
        return asked
    shares = cloud.resources[f"onlineEndpoints/{endpoint}"]["properties"]["traffic"]
    if not any(shares.values()):
        raise AzureError(404, "NotFound", f"The endpoint {endpoint} sends its traffic to no deployment.")
    return random.choices(list(shares), list(shares.values()))[0]


def _forward(request: Request, url: str, deployment: str, timeout: float) -> Response:
    headers = {name: value for name, value in request.headers.items() if name.lower() in _FORWARDED}
    inner = urllib.request.Request(url + request.path, request.body or None, headers, method=request.method)
    own = {"azureml-model-deployment": deployment}
    try:
        with loopback.open(inner, timeout=timeout) as response:
            own["Content-Type"] = response.headers.get("Content-Type", "application/json")
            return Response(response.read(), 200, own)
    except urllib.error.HTTPError as error:
        # Whatever else the model answers is 424 outside, its own status in a header.
        reason = {
            "ms-azureml-model-error-statuscode": str(error.code),
            "ms-azureml-model-error-reason": "model_error",
        }
        own["Content-Type"] = error.headers.get("Content-Type", "application/json")
        return Response(error.read(), 424, own | reason)
    except TimeoutError:
        raise AzureError(408, "RequestTimeout", f"The model did not answer within {timeout:g} s.") from None
    except OSError:
        raise AzureError(502, "BadGateway", f"The deployment {deployment} does not answer.") from None
