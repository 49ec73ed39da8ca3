"""Which service answers a request: by its host, then by its path."""

from __future__ import annotations

import re
import traceback
from dataclasses import replace

from stand_in import assets, batch, jobs, login, online, scoring, workspace
from stand_in.blobs import ACCOUNT, DOMAIN
from stand_in.cloud import Cloud
from stand_in.names import API, INFERENCE, MANAGEMENT, REGISTRY, RESOURCE_GROUP, SUBSCRIPTION, WORKSPACE
from stand_in.rest import AzureError, Request, Response, Routes

_TELEMETRY = re.compile(r"(.+\.in\.applicationinsights\.azure\.com|dc\.services\.visualstudio\.com)$")
_SCOPED = re.compile(
    r"(?P<service>.*?)/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/(?P<kind>workspaces|registries)/(?P<name>[^/]+)(?P<rest>.*)$",
    re.IGNORECASE,
)
_MANAGEMENT_SERVICES = ("", "/mferp/managementfrontend")
_HISTORY = "/history/v1.0"


def answer(cloud: Cloud, request: Request) -> Response:
    """Answer any request of any host; what is unknown or refused is remembered as a problem."""
    try:
        response = _answer(cloud, request)
    except AzureError as error:
        cloud.log(request, error.status, str(error))
        played = any(fault.error is error for fault in cloud.faults)
        if not played and (error.status == 400 or error.code == "StandIn"):
            cloud.problems.append(f"{request.method} {request.url}: {error}")
        return _blob_error(error) if request.host.endswith(DOMAIN) else error.response()
    except Exception:
        cloud.problems.append(f"{request.method} {request.url}: {traceback.format_exc()}")
        return AzureError(500, "StandIn", "The stand-in failed: see its problems.").response()
    cloud.log(request, response.status)
    return response


def _blob_error(error: AzureError) -> Response:
    xml = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{error.code}</Code></Error>'
    headers = {"x-ms-error-code": str(error.code), "Content-Type": "application/xml", **error.headers}
    return Response(xml.encode(), error.status, headers)


def _answer(cloud: Cloud, request: Request) -> Response:
    if request.host == login.HOST:
        found = login.routes.find(cloud, request, request.path)
        return found() if found else _unknown(request)
    if request.host == f"{ACCOUNT}.{DOMAIN}":
        return cloud.blobs.answer(request)
    if request.host.endswith(f".{INFERENCE}"):
        return scoring.answer(cloud, request)
    if _TELEMETRY.match(request.host):
        return Response({})
    if request.host in (MANAGEMENT, API):
        return _manage(cloud, request)
    return _unknown(request)


def _manage(cloud: Cloud, request: Request) -> Response:
    if request.path.rstrip("/") != "/discovery":
        login.check(cloud, request)
    cloud.strike("request")
    scoped = _SCOPED.match(request.path)
    if not scoped:
        tables: tuple[Routes, ...] = (workspace.global_routes,)
        rest = request.path
    else:
        scope, rest = _scope(*scoped.group("subscription", "group", "kind", "name")), scoped["rest"] or "/"
        request = replace(request, scope=scope)
        tables = (jobs.history,) if scoped["service"] == _HISTORY else _TABLES if not scope else (assets.routes,)
        if scoped["service"] not in (*_MANAGEMENT_SERVICES, _HISTORY):
            return _unknown(request)
    for table in tables:
        if found := table.find(cloud, request, rest):
            with cloud.lock:
                return found()
    return _unknown(request)


_TABLES = (workspace.routes, online.routes, batch.routes, jobs.routes, assets.routes)


def _scope(subscription: str, group: str, kind: str, name: str) -> str:
    """What names of the workspace or the registry begin with; raises `AzureError` if there is no such."""
    if subscription.lower() != SUBSCRIPTION:
        raise AzureError(404, "SubscriptionNotFound", f"The subscription {subscription} could not be found.")
    if group.lower() != RESOURCE_GROUP:
        raise AzureError(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
    if name.lower() != (WORKSPACE if kind.lower() == "workspaces" else REGISTRY):
        what = f"Microsoft.MachineLearningServices/{kind}/{name}"
        message = f"The Resource '{what}' under resource group '{group}' was not found."
        raise AzureError(404, "ResourceNotFound", message)
    return "" if kind.lower() == "workspaces" else f"registries/{REGISTRY}/"


def _unknown(request: Request) -> Response:
    raise AzureError(404, "StandIn", f"The stand-in does not play {request.method} {request.url}.")
