"""login.microsoftonline.com, as far as a client secret goes."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from urllib.parse import parse_qs

from stand_in.cloud import Cloud
from stand_in.names import CLIENT, TENANT
from stand_in.rest import AzureError, Request, Response, Routes

HOST = "login.microsoftonline.com"
_AUTHORITY = f"https://{HOST}/{TENANT}"

routes = Routes()


@routes.on("GET", "/common/discovery/instance")
def instances(cloud: Cloud, request: Request) -> Response:
    alias = {"preferred_network": HOST, "preferred_cache": "login.windows.net", "aliases": [HOST]}
    return Response(
        {"tenant_discovery_endpoint": f"{_AUTHORITY}/v2.0/.well-known/openid-configuration", "metadata": [alias]}
    )


@routes.on("GET", "/{tenant}/v2.0/.well-known/openid-configuration")
def configuration(cloud: Cloud, request: Request, tenant: str) -> Response:
    return Response(
        {
            "issuer": f"{_AUTHORITY}/v2.0",
            "authorization_endpoint": f"{_AUTHORITY}/oauth2/v2.0/authorize",
            "token_endpoint": f"{_AUTHORITY}/oauth2/v2.0/token",
            "device_authorization_endpoint": f"{_AUTHORITY}/oauth2/v2.0/devicecode",
        }
    )


@routes.on("POST", "/{tenant}/oauth2/v2.0/token")
def token(cloud: Cloud, request: Request, tenant: str) -> Response:
    form = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
    fault = cloud.take("login")
    who = (tenant, form.get("client_id"), form.get("client_secret"))
    if not fault and who == (TENANT, CLIENT, cloud.client_secret):
        audience = form.get("scope", "").removesuffix("/.default")
        answer = {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599}
        return Response(answer | {"access_token": _token(cloud, audience)})
    message = fault.error.message if fault else "AADSTS7000215: Invalid client secret provided."
    return Response({"error": "invalid_client", "error_description": message, "error_codes": [7000215]}, 401)


def _token(cloud: Cloud, audience: str) -> str:
    """A token with the shape of a JSON web token, which clients read the tenant from."""
    claims = {"aud": audience, "tid": TENANT, "appid": CLIENT, "exp": int(time.time()) + 3599}
    value = ".".join([_encode({"alg": "RS256", "typ": "JWT"}), _encode(claims), cloud.secret()])
    cloud.secrets.add(value)
    return value


def _encode(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def check(cloud: Cloud, request: Request) -> None:
    """Raise `AzureError` unless the request carries a token from here."""
    if request.bearer.count(".") != 2 or request.bearer not in cloud.secrets:
        raise AzureError(401, "InvalidAuthenticationToken", "The access token is missing or invalid.")
