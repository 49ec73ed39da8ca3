"""What can go wrong, and how it is answered.

    SDMLflowError
      RequestError              a request that gets no image; has an HTTP status
        InvalidRequest      400 the body, or its rows, are not what the contract describes
        InvalidParameter    400 a value is of the wrong type or out of bounds
        UnknownName         400 a parameter, column or key that does not exist
        LimitExceeded       413 more prompts, images, pixels or text than allowed
        GenerationFailed    422 the model gave no picture, and would give none if asked again
        QueueFull           429 too much work is waiting; `retry_after` says when to ask again
        NotReady            503 the model is still loading, or shutting down
        SafetyUnavailable   503 a picture could not be checked, so it does not leave
        DeadlineExceeded    504 the picture would come too late for the caller
      PackageError              a checkpoint or a package that cannot be used
        CheckpointError         the source cannot be packaged; the message says why
        IntegrityError          a file is missing, or is not what the manifest says

No failure is answered with 500: Azure's SDK would send the request again, three times,
to fail three times more. 422 tells it to leave off.
"""

from __future__ import annotations

from typing import Any


class SDMLflowError(Exception):
    """Base of every error that sd_mlflow raises on purpose; the message is fit for the caller's eyes."""


class RequestError(SDMLflowError):
    """A request that gets no image. `row` is the row at fault, counted from 0, or None."""

    status = 400
    retry_after: int | None = None

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.row = row

    @property
    def code(self) -> str:
        """The error's name in the response."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """The response's body: `{"error": {"code": …, "message": …}}`, with `row` where there is one."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.row is not None:
            body["row"] = self.row
        return {"error": body}


class InvalidRequest(RequestError):
    """The body, or its rows, are not what the contract describes."""


class InvalidParameter(RequestError):
    """A value is of the wrong type or out of bounds."""


class UnknownName(RequestError):
    """A parameter, column or key that does not exist."""


class LimitExceeded(RequestError):
    """More prompts, images, pixels or text than the deployment allows."""

    status = 413


class GenerationFailed(RequestError):
    """The model gave no picture, and would give none if asked again."""

    status = 422


class QueueFull(RequestError):
    """Too much work is waiting; ask again after `retry_after` seconds."""

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(RequestError):
    """The model is still loading, or shutting down."""

    status = 503
    retry_after = 10


class SafetyUnavailable(RequestError):
    """A picture could not be checked, so it does not leave."""

    status = 503


class DeadlineExceeded(RequestError):
    """The picture would come too late for the caller."""

    status = 504


class PackageError(SDMLflowError):
    """A checkpoint or a package that cannot be used."""


class CheckpointError(PackageError):
    """The source cannot be packaged."""


class IntegrityError(PackageError):
    """A file is missing, or is not what the manifest says."""
