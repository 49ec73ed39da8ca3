"""What Azure checks of a request; each raises its error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stand_in.rest import bad_request

MOST_SECONDS = 180
_NAME = r"[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]"
_SIZE = r"(Standard|Basic)_[A-Za-z0-9_]+"


def required(body: Mapping[str, Any], key: str, where: str = "") -> Any:
    """The value of `key`, which must be there."""
    value = body.get(key)
    if value is None or value == "":
        raise bad_request(f"The field {f'{where}.' if where else ''}{key} is required.")
    return value


def name(value: str, what: str) -> None:
    """Endpoints and deployments: letters, digits and hyphens, 3 to 32 of them."""
    if not re.fullmatch(_NAME, value):
        raise bad_request(
            f"{what} name {value} is invalid: it must begin with a letter, end with a letter or a digit, and have "
            "3 to 32 letters, digits and hyphens."
        )


def seconds(duration: str | None, default: float) -> float:
    """An ISO 8601 duration, as the SDK writes time-outs."""
    if duration is None:
        return default
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", duration)
    if not match or not any(match.groups()):
        raise bad_request(f"{duration} is not an ISO 8601 duration.")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def request_settings(settings: Mapping[str, Any]) -> None:
    """A deployment's request settings: at most three minutes a request, at least one at a time."""
    timeout = seconds(settings.get("requestTimeout"), 5)
    if not 0 < timeout <= MOST_SECONDS:
        raise bad_request(f"RequestTimeout must be at most 00:03:00, but it is {timeout:g} s.")
    if (settings.get("maxConcurrentRequestsPerInstance") or 1) < 1:
        raise bad_request("MaxConcurrentRequestsPerInstance must be at least 1.")


def probe(settings: Mapping[str, Any] | None, which: str) -> None:
    """A liveness or a readiness probe: its numbers within Azure's bounds."""
    for key, least in (("failureThreshold", 1), ("successThreshold", 1)):
        value = (settings or {}).get(key)
        if value is not None and value < least:
            raise bad_request(f"{which}.{key} must be at least {least}.")
    for key in ("period", "timeout"):
        value = (settings or {}).get(key)
        if value is not None and seconds(value, 1) < 1:
            raise bad_request(f"{which}.{key} must be at least one second.")


def instance_type(value: Any) -> str:
    """A size of virtual machine, which managed deployments must give."""
    if not value:
        raise bad_request("The field InstanceType is required for managed online deployments.")
    if not re.fullmatch(_SIZE, str(value)):
        raise bad_request(f"The specified VM size {value} is not supported.")
    return str(value)


def traffic(shares: Mapping[str, int], deployments: set[str]) -> None:
    """Traffic goes to deployments that exist, and its percentages sum to 0 or to 100."""
    unknown = sorted(set(shares) - deployments)
    if unknown:
        raise bad_request(f"The traffic names deployments that the endpoint does not have: {', '.join(unknown)}.")
    if any(not 0 <= share <= 100 for share in shares.values()) or sum(shares.values()) not in (0, 100):
        raise bad_request(f"The traffic must sum to 0 or 100, but it sums to {sum(shares.values())}.")
