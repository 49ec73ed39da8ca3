"""What every service of the stand-in speaks: requests, responses, Azure's error object, and routes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from stand_in.cloud import Cloud


@dataclass(frozen=True)
class Request:
    """One HTTP request, read whole.

    `path` is without the query and still quoted; `scope` begins the names of what it is about: empty
    for the workspace, `registries/NAME/` for a registry.
    """

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    scope: str = ""

    @property
    def url(self) -> str:
        return f"https://{self.host}{self.path}"

    @property
    def bearer(self) -> str:
        """The token of the Authorization header, empty if there is none."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip()

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; raises `AzureError` if it is not one."""
        try:
            body = json.loads(self.body or b"{}")
        except ValueError:
            raise bad_request("The body is not JSON.") from None
        if not isinstance(body, dict):
            raise bad_request("The body is not a JSON object.")
        return body


@dataclass(frozen=True)
class Response:
    """One HTTP response; a body that is not bytes goes out as JSON."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> tuple[bytes, str]:
        """The bytes to send, and their type."""
        if isinstance(self.body, bytes):
            return self.body, self.headers.get("Content-Type", "application/octet-stream")
        return json.dumps(self.body).encode(), "application/json; charset=utf-8"


class AzureError(Exception):
    """What Azure refuses with: a status and its error object."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        headers: Mapping[str, str] | None = None,
        details: str = "",
    ) -> None:
        super().__init__(f"{status} {code}: {message} {details}".rstrip())
        self.status, self.code, self.message, self.details = status, code, message, details
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object, as the resource manager writes it."""
        code = "InferencingClientCreateDeploymentFailed"
        details = [{"code": code, "message": self.details, "details": [], "additionalInfo": []}]
        own: dict[str, Any] = {"code": self.code, "message": self.message, "additionalInfo": []}
        return own | {"details": details if self.details else []}

    def response(self) -> Response:
        return Response({"error": self.body()}, self.status, self.headers)


def bad_request(message: str) -> AzureError:
    """A request that is malformed, or asks for what cannot be."""
    return AzureError(400, "BadRequest", message)


def invalid(field: str, reason: str) -> AzureError:
    """A request that the service behind the resource manager refuses: the reason is JSON within the details."""
    inner = {"errors": {field: [reason]}, "title": "One or more validation errors occurred.", "status": 400}
    details = f"InferencingClient HttpRequest error, error detail: {json.dumps(inner)}"
    return AzureError(400, "BadRequest", "The request is invalid.", details=details)


def not_found(what: str) -> AzureError:
    """Something that does not exist; `what` begins with its kind."""
    return AzureError(404, "UserError", f"{what} does not exist.")


Handler = Callable[..., Response]


class Routes:
    """Which function answers what: a table of methods and paths with `{names}`, tried in order."""

    def __init__(self) -> None:
        self._table: list[tuple[str, re.Pattern[str], Handler]] = []

    def on(self, method: str, path: str) -> Callable[[Handler], Handler]:
        """Register a handler; `{name}` is one segment of the path, `{name...}` all that is left."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))
        pattern = re.sub(r"\\{(\w+)\\.\\.\\.\\}", r"(?P<\1>.+)", pattern)

        def register(handler: Handler) -> Handler:
            # Segments of resource ids are compared without regard to case.
            self._table.append((method, re.compile(pattern + "/?$", re.IGNORECASE), handler))
            return handler

        return register

    def find(self, cloud: Cloud, request: Request, path: str) -> Callable[[], Response] | None:
        """The handler for `request` at `path`, its names filled in; None if there is none."""
        for method, pattern, handler in self._table:
            if method == request.method and (match := pattern.match(path)):
                names = {name: unquote(value) for name, value in match.groupdict().items()}
                return lambda: handler(cloud, request, **names)
        return None
