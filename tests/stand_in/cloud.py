"""What the stand-in knows: resources, operations, secrets, and what went wrong."""

from __future__ import annotations

import re
import secrets
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stand_in.blobs import Blobs
from stand_in.faults import Fault, Place
from stand_in.names import MANAGEMENT, REGION, SUBSCRIPTION, WORKSPACE_ARM_ID
from stand_in.rest import AzureError, Request, Response, bad_request

_KINDS = {
    kind.lower(): kind
    for kind in (
        *("models", "codes", "environments", "data", "components", "computes", "datastores"),
        *("onlineEndpoints", "batchEndpoints", "deployments", "versions", "labels", "jobs"),
    )
}
# A quarter of a second: clients ask again as soon as they are told, and tests wait for them.
_ASK_AGAIN = {"x-ms-retry-after-ms": "250"}

Body = dict[str, Any]


@dataclass
class Cloud:
    """The state of one stand-in. Handlers of the resource manager hold `lock`."""

    folder: Path
    package_environment: Mapping[str, str]
    resources: dict[str, Body] = field(default_factory=dict)
    operations: dict[str, Body] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    #: What stops the processes of a resource, by its name.
    running: dict[str, Callable[[], None]] = field(default_factory=dict)
    #: Where a deployment's server is, and how many calls it takes at once.
    servers: dict[str, tuple[str, threading.BoundedSemaphore]] = field(default_factory=dict)
    #: Where its server writes, by a deployment's name.
    logs: dict[str, Path] = field(default_factory=dict)
    #: The two keys of an online endpoint, by its name.
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    #: The one child of a batch job, by the job's name.
    children: dict[str, str] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)
    closed: bool = False

    def __post_init__(self) -> None:
        self.client_secret = self.secret()
        self.blobs = Blobs(self.secret, self.folder / "blobs")

    def secret(self) -> str:
        """A new key, token or signature, remembered."""
        value = secrets.token_urlsafe(32)
        self.secrets.add(value)
        return value

    def strike(self, place: Place) -> None:
        """Raise the fault that is to be played at `place`, if there is one."""
        fault = self.take(place)
        if fault:
            raise fault.error

    def take(self, place: Place) -> Fault | None:
        """The fault to play at `place`, counted as played."""
        with self.lock:
            for fault in self.faults:
                if fault.place == place and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def put(self, name: str, kind: str, properties: Body, **other: Any) -> Body:
        """Write the resource `name` and return it as the resource manager shows it."""
        old = self.resources.get(name)
        now = datetime.now(UTC).isoformat()
        created = old["systemData"]["createdAt"] if old else now
        body = {
            "id": self.arm_id(name),
            "name": name.rpartition("/")[2],
            "type": f"Microsoft.MachineLearningServices/workspaces/{kind}",
            "properties": properties,
            "systemData": {"createdAt": created, "createdBy": "stand-in", "lastModifiedAt": now},
        } | {key: value for key, value in other.items() if value is not None}
        with self.lock:
            self.resources[name] = body
        return body

    def get(self, name: str) -> Body:
        """The resource `name`; raises Azure's 404."""
        if name not in self.resources:
            what, kind = name.rpartition("/")[2], name.split("/")[-2]
            raise AzureError(
                404, "UserError", f"{_singular(kind)} {what} ({name}) was not found in the workspace."
            )
        return self.resources[name]

    def list(self, parent: str) -> list[Body]:
        """The resources right under `parent`, a name that ends with a kind, newest first."""
        with self.lock:
            found = [body for name, body in self.resources.items() if name.rpartition("/")[0] == parent]
        return sorted(found, key=lambda body: body["systemData"]["createdAt"], reverse=True)

    def delete(self, name: str) -> None:
        """Remove `name` and all under it, and stop what runs there."""

        def there(things: dict[str, Any]) -> list[Any]:
            return [things.pop(each) for each in list(things) if each == name or each.startswith(name + "/")]

        with self.lock:
            there(self.servers), there(self.logs), there(self.resources)
            stops = there(self.running)
        for stop in stops:
            stop()

    def keep(self, name: str, stop: Callable[[], None]) -> Callable[[], None]:
        """Remember what stops the process of `name`; returns what stops the one before it."""
        with self.lock:
            before = self.running.get(name, lambda: None)
            if not self.closed and name in self.resources:
                self.running[name] = stop
                return before
        stop()
        raise AzureError(409, "Conflict", f"{name} was deleted meanwhile.")

    def settled(self, name: str) -> None:
        """Raise Azure's 409 if an operation is at work on the resource `name`."""
        state = self.resources.get(name, {}).get("properties", {}).get("provisioningState")
        if state in ("Creating", "Updating", "Deleting"):
            raise AzureError(409, "Conflict", f"{name} is in the state {state}: another operation is in progress.")

    def arm_id(self, name: str) -> str:
        return f"azureml://{name}" if name.startswith("registries/") else f"{WORKSPACE_ARM_ID}/{name}"

    def resolve(self, reference: str, kind: str) -> str:
        """The name of the resource that an id in a request means; raises `AzureError` if it does not exist."""
        id_ = reference.removeprefix("azureml:")
        registry = re.match(r"(?://)?/?.*?registries/([^/]+)/(.+)", id_)
        inside = re.match(r".*/workspaces/[^/]+/(.+)", id_)
        if not registry and not inside:
            raise bad_request(f"The {kind} id {reference} is not an id.")
        rest = (registry[2] if registry else inside[1]).split("/")  # type: ignore[index]
        rest[::2] = [_KINDS.get(part.lower(), part) for part in rest[::2]]
        name = "/".join([*(("registries", registry[1]) if registry else ()), *rest])
        if name.endswith("/labels/latest") and (
            versions := self.list(name.removesuffix("labels/latest") + "versions")
        ):
            name = name.removesuffix("labels/latest") + f"versions/{versions[0]['name']}"
        if rest[0] != kind:
            raise bad_request(f"The id {reference} is one of {rest[0]}, not of {kind}.")
        # Microsoft's own registry holds the curated environments: any of them will do.
        if name not in self.resources and not name.startswith("registries/azureml/"):
            raise bad_request(f"The {_singular(kind)} {reference} that the request refers to does not exist.")
        return name

    def close(self) -> None:
        """Stop whatever runs."""
        self.closed = True
        while self.running:
            self.running.popitem()[1]()

    def begin(self, name: str, work: Callable[[], None]) -> Mapping[str, str]:
        """Start the operation `work` on resource `name`; returns the headers to follow it by."""
        id_ = str(uuid.uuid4())
        self.operations[id_] = {"id": id_, "name": id_, "status": "InProgress"}

        def run() -> None:
            try:
                self.strike("operation")
                work()
                self._finish(name, id_, "Succeeded", None)
            except AzureError as error:
                self._finish(name, id_, "Failed", error)
            except Exception:
                self.problems.append(traceback.format_exc())
                unexpected = AzureError(500, "InternalServerError", "The stand-in failed: see its problems.")
                self._finish(name, id_, "Failed", unexpected)

        threading.Thread(target=run, daemon=True).start()
        base = f"https://{MANAGEMENT}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices"
        status = f"{base}/locations/{REGION}/mfeOperationsStatus/{id_}?api-version=2025-12-01"
        return {"Azure-AsyncOperation": status, "Location": status.replace("Status", "Results")} | _ASK_AGAIN

    def _finish(self, name: str, id_: str, state: str, error: AzureError | None) -> None:
        with self.lock:
            if name in self.resources:
                self.resources[name]["properties"]["provisioningState"] = state
            self.operations[id_] |= {"status": state} | ({"error": error.body()} if error else {})

    def operation(self, id_: str) -> Response:
        """How the operation `id_` stands."""
        if id_ not in self.operations:
            raise AzureError(404, "NotFound", f"There is no operation {id_}.")
        return Response(self.operations[id_], 200, _ASK_AGAIN)

    def log(self, request: Request, status: int, message: str = "") -> None:
        """A line of the stand-in's own log: without query and headers, which carry secrets."""
        with self.lock, (self.folder / "requests.log").open("a", encoding="utf-8") as file:
            file.write(f"{request.method} {request.url} {message or status}\n")


def _singular(kind: str) -> str:
    return {"batchEndpoints": "Batch endpoint", "onlineEndpoints": "Online endpoint"}.get(kind, kind.rstrip("s"))
