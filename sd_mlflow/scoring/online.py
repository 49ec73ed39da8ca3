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


def init() -> None:
    """Load the package; raises `PackageError`, which stops the server, if it is not whole."""
    global _model
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    # Azure mounts the registered folder here, or one folder further down.
    package = next(path.parent for pattern in ("MLmodel", "*/MLmodel") for path in sorted(root.glob(pattern)))
    _model = mlflow.pyfunc.load_model(str(package)).unwrap_python_model().text_to_image


@rawhttp  # type: ignore[untyped-decorator]
def run(request: Any) -> Any:
    """Answer one request: the records, or the error object with its status."""
    # Importable only now, from the package's code.
    from sd_mlflow.errors import GenerationFailed, LimitExceeded, RequestError
    from sd_mlflow.forms import read_body

    try:
        most = _model.settings.max_request_bytes
        body = request.stream.read(most + 1)
        if len(body) > most:
            raise LimitExceeded(f"the body is longer than the {most} bytes allowed here")
        records = _model.answer(*read_body(body))
    except RequestError as error:
        return _refusal(error)
    except Exception:
        _log.exception("a request failed")
        return _refusal(GenerationFailed("the model could not answer this request"))
    return AMLResponse(records, 200, {}, json_str=True)


def _refusal(error: RequestError) -> Any:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return AMLResponse(error.to_dict(), error.status, headers, json_str=True)
