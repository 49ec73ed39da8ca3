"""Azure ML's online scoring script: `init()` and `run(request)` under azureml-inference-server-http.

The script travels alone to the endpoint: the package in `AZUREML_MODEL_DIR` brings the rest.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

if TYPE_CHECKING:
    from sd_mlflow.errors import RequestError
    from sd_mlflow.model import TextToImage

# A child of the server's own logger, so that it reaches the endpoint's log.
_log = logging.getLogger("azmlinfsrv.sd_mlflow")
_model: TextToImage
_BLOCK, _MOST_DROPPED = 1 << 16, 1 << 28


def init() -> None:
    """Load the package; raises `PackageError`, which stops the server, if it is not whole."""
    global _model
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    # Azure mounts the registered folder here, or one folder further down.
    packages = [path.parent for pattern in ("MLmodel", "*/MLmodel") for path in sorted(root.glob(pattern))]
    if not packages:
        raise FileNotFoundError(f"{root} holds no MLmodel: it must be a package made by `sd-mlflow package`")
    _model = mlflow.pyfunc.load_model(str(packages[0])).unwrap_python_model().text_to_image


@rawhttp  # type: ignore[untyped-decorator]
def run(request: Any) -> Any:
    """Answer one request: the records, or the error object with its status."""
    # Importable only now, from the package's code.
    from sd_mlflow.errors import GenerationFailed, InvalidRequest, RequestError
    from sd_mlflow.forms import read_body

    if request.method == "OPTIONS":  # a browser asks before it posts; AML_CORS_ORIGINS says what it hears
        return AMLResponse("", 200)
    try:
        if request.method != "POST":
            raise InvalidRequest(f"send the request with POST, not {request.method}")
        records = _model.answer(*read_body(_body(request.stream)))
    except RequestError as error:
        return _refusal(error)
    except Exception:
        _log.exception("a request failed")
        return _refusal(GenerationFailed("the model could not answer this request"))
    return AMLResponse(records, 200, {}, json_str=True)


def _body(stream: Any) -> bytes:
    from sd_mlflow.errors import LimitExceeded

    most = _model.settings.max_request_bytes
    body: bytes = stream.read(most + 1)
    if len(body) > most:
        # A client that is still sending does not listen: drop what else comes, within reason.
        for _ in range(_MOST_DROPPED // _BLOCK):
            if not stream.read(_BLOCK):
                break
        raise LimitExceeded(f"the body is longer than the {most} bytes allowed here")
    return body


def _refusal(error: RequestError) -> Any:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return AMLResponse(error.to_dict(), error.status, headers, json_str=True)
