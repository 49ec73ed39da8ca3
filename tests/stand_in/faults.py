"""What can go wrong in Azure, worded as Azure words it; `azure.play` takes these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stand_in.names import SUBSCRIPTION
from stand_in.rest import AzureError, invalid

#: Every request to the resource manager; the operation that a request starts; the container that an
#: operation starts; a request for a token; the request that creates an endpoint, a deployment, a cluster.
Place = Literal["request", "operation", "container", "login", "endpoint", "deployment", "compute"]

_GUIDE = "Please see troubleshooting guide, available here: https://aka.ms/oe-tsg#error-"


@dataclass
class Fault:
    """One thing that goes wrong at `place`, the next `times` times that it could."""

    place: Place
    error: AzureError
    times: int = 1

    @property
    def code(self) -> str:
        """What to call it in a test's name."""
        return f"{self.place}-{self.error.code}"


def throttled(times: int = 1, retry_after: float = 1) -> Fault:
    """429 from the resource manager; a client that waits as it is told gets through."""
    message = "The request was throttled. Please retry after the time that the Retry-After header gives."
    return Fault("request", AzureError(429, "TooManyRequests", message, _wait(retry_after)), times)


def unavailable(times: int = 1, retry_after: float = 1) -> Fault:
    """503 from the resource manager."""
    message = "The service is temporarily unavailable. Please try again later."
    return Fault("request", AzureError(503, "ServiceUnavailable", message, _wait(retry_after)), times)


def _wait(seconds: float) -> dict[str, str]:
    """The header for whole seconds, or Azure's own for less."""
    if seconds == round(seconds):
        return {"Retry-After": str(round(seconds))}
    return {"x-ms-retry-after-ms": str(round(seconds * 1000))}


def operation_fails(message: str = "An internal server error occurred.", times: int = 1) -> Fault:
    """An operation that was accepted ends as Failed."""
    return Fault("operation", AzureError(500, "InternalServerError", message), times)


def out_of_quota(instance_type: str = "Standard_NC6s_v3", times: int = 1) -> Fault:
    """A deployment that the subscription has no cores left for."""
    reason = (
        f"Not enough quota available for {instance_type} in SubscriptionId {SUBSCRIPTION}. "
        f"Current usage/limit: 0/6. Additional needed: 8 {_GUIDE}outofquota"
    )
    return Fault("deployment", invalid("VmSize", reason), times)


def out_of_cluster_quota(times: int = 1) -> Fault:
    """A compute cluster that the subscription has no cores left for."""
    message = (
        "The specified subscription has a total vCPU quota of 0 and is less than the requested compute training "
        "cluster and/or compute instance's max nodes, which maps to 24 vCPUs."
    )
    return Fault("compute", AzureError(400, "BadRequest", message), times)


def out_of_capacity(times: int = 1) -> Fault:
    """A deployment whose machines the region does not have at the moment."""
    message = "OutOfCapacity: The specified VM Size failed to provision due to a lack of Azure capacity. "
    return Fault("operation", AzureError(400, None, f"{message}{_GUIDE}outofcapacity"), times)


def container_crashes(times: int = 1) -> Fault:
    """A container whose scoring script fails in `init`: the deployment fails, and its log says why."""
    return Fault("container", AzureError(400, None, "the stand-in plays a crash"), times)


def name_taken(times: int = 1) -> Fault:
    """An endpoint name that somebody else in the region has."""
    reason = (
        "There is already an endpoint with this name, Endpoint name needs to be unique within a region. "
        "Try some other name."
    )
    return Fault("endpoint", invalid("", reason), times)


def login_refused(times: int = 1_000_000) -> Fault:
    """A client secret that is wrong or has expired, until `azure.clear()`."""
    message = "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent is the secret value."
    return Fault("login", AzureError(401, "invalid_client", message), times)
