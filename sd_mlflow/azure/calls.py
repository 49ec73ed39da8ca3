"""Ask what is deployed: a request to an online endpoint, a job over files of prompts."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from azure.ai.ml import Input, MLClient
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.constants._endpoint import EndpointInvokeFields
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from sd_mlflow.azure.client import AzureError, Wait, errors

_ENDED = ("Completed", "Failed", "Canceled", "NotResponding")
_POLL_SECONDS = 2.0
#: The output of a batch job: the predictions file, and the images beside it.
_OUTPUT = "score"


def direct(client: MLClient, endpoint: str, traffic: Mapping[str, int], wait: Wait) -> None:
    """Give each deployment of an online endpoint its percent of the traffic. Raises `AzureError`."""
    with errors(f"Traffic of {endpoint}"):
        there = client.online_endpoints.get(endpoint)
        there.traffic = dict(traffic)
        wait("Directing traffic", client.online_endpoints.begin_create_or_update(there))


def ask(
    client: MLClient,
    endpoint: str,
    rows: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    deployment: str | None = None,
) -> list[dict[str, Any]]:
    """The records with which an online endpoint answers `rows`. Raises `AzureError` with what it said."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # A form that Azure's no-code script takes too.
    data = [[row.get(name) for name in columns] for row in rows]
    body = {"input_data": {"columns": columns, "index": list(range(len(rows))), "data": data}}
    with tempfile.TemporaryDirectory() as folder, errors(f"Asking {endpoint}"):
        request = Path(folder, "request.json")
        request.write_text(json.dumps(body | {"params": dict(params)}), encoding="utf-8")
        _forget_deployment()
        try:
            answer = client.online_endpoints.invoke(
                endpoint, request_file=str(request), deployment_name=deployment
            )
        except TypeError:  # the SDK's own slip over status 408
            raise AzureError(f"{endpoint} did not answer within its request time-out: ask for less") from None
        except ResourceNotFoundError:  # there is no such endpoint
            raise
        except HttpResponseError as error:
            # Azure answers 424 for what the scoring script answered with another status.
            headers = {} if error.response is None else error.response.headers
            status = headers.get("ms-azureml-model-error-statuscode", error.status_code)
            raise AzureError(f"{endpoint} answered {status}: {_said(error)}") from None
    records: list[dict[str, Any]] = json.loads(answer)
    return records


def _forget_deployment() -> None:
    """The SDK keeps the deployment of one call in the headers of the next."""
    EndpointInvokeFields.DEFAULT_HEADER.pop(EndpointInvokeFields.MODEL_DEPLOYMENT, None)


def _said(error: HttpResponseError) -> str:
    """The message of the scoring script, or whatever came instead."""
    text = error.response.text() if error.response is not None else str(error)
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip().partition("\n")[0][:500]


def run_job(
    client: MLClient,
    endpoint: str,
    prompts: Path,
    out: Path,
    deployment: str | None = None,
    tell: Callable[[str], None] = lambda status: None,
) -> None:
    """Have a batch endpoint score the file or folder `prompts`, and download its output into `out`.

    `tell` hears the job's name and status while it runs; interrupted, the job goes on at Azure.
    Raises `AzureError`.
    """
    kind = AssetTypes.URI_FOLDER if prompts.is_dir() else AssetTypes.URI_FILE
    with errors(f"Asking {endpoint}"):
        _forget_deployment()
        given = {"prompts": Input(type=kind, path=str(prompts.absolute()))}
        job = client.batch_endpoints.invoke(endpoint_name=endpoint, deployment_name=deployment, inputs=given)
        while (status := client.jobs.get(job.name).status) not in _ENDED:
            tell(f"{job.name}: {status}")
            time.sleep(_POLL_SECONDS)
        if status != "Completed":
            logs = f"read its logs with `az ml job stream --name {job.name}`"
            raise AzureError(f"the job {job.name} ended as {status}: {logs}")
        out.mkdir(parents=True, exist_ok=True)
        client.jobs.download(job.name, download_path=out, output_name=_OUTPUT)
