"""Batch jobs, as the resource manager and the run history show them: a pipeline with one child, `batchscoring`."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path
from typing import Any

from stand_in.blobs import DATASTORES
from stand_in.cloud import Cloud
from stand_in.mini_batches import BatchRun
from stand_in.names import WORKSPACE_ARM_ID
from stand_in.rest import AzureError, Request, Response, Routes, not_found

#: Below the workspace.
routes = Routes()
#: Below the workspace, of the run history.
history = Routes()

_ARTIFACTS = DATASTORES["workspaceartifactstore"]
_LOG = "user_logs/std_log.txt"


def start(cloud: Cloud, job: str, child: str, endpoint: str, deployment: str, run: BatchRun) -> dict[str, Any]:
    """Create the job and set `run` to work; returns what the caller of an endpoint is answered."""
    name = f"jobs/{job}"
    tags = {
        "azureml.batchrun": "true",
        "azureml.jobtype": "azureml.batchjob",
        "azureml.deploymentname": deployment,
    }
    studio = {"jobServiceType": "Studio", "endpoint": f"https://ml.azure.com/runs/{job}", "properties": {}}
    properties = {
        "jobType": "Pipeline",
        "status": "Running",
        "displayName": job,
        "experimentName": endpoint,
        "services": {"Studio": studio},
        "tags": tags,
        "properties": {"azureml.deploymentname": deployment, "azureml.endpointname": endpoint},
        "inputs": {},
        "outputs": {},
        "jobs": {},
        "settings": {},
        "isArchived": False,
    }
    run.log.parent.mkdir(parents=True, exist_ok=True)
    run.log.touch()
    cloud.put(name, "jobs", properties)
    cloud.children[job] = child
    cloud.keep(name, run.cancel)
    threading.Thread(target=_work, args=(cloud, name, run), daemon=True).start()
    return summary(cloud, name)


def _work(cloud: Cloud, name: str, run: BatchRun) -> None:
    status, error = "Completed", None
    try:
        run.work()
    except AzureError as failure:
        status, error = "Failed", failure.body()
    except Exception:
        cloud.problems.append(traceback.format_exc())
        status, error = "Failed", AzureError(500, "SystemError", "The stand-in failed: see its problems.").body()
    with cloud.lock:
        cloud.running.pop(name, None)
        status, error = ("Canceled", None) if run.cancelled else (status, error)
        cloud.resources[name]["properties"]["status"] = status
        cloud.resources[name]["error"] = error


def log_of(cloud: Cloud, run_id: str) -> Path:
    return cloud.blobs.container(_ARTIFACTS) / "ExperimentRun" / f"dcid.{run_id}" / _LOG


def of(cloud: Cloud, endpoint: str, deployment: str | None) -> list[str]:
    """The names of the jobs of an endpoint, or of one of its deployments."""
    wanted = {"azureml.endpointname": endpoint} | ({"azureml.deploymentname": deployment} if deployment else {})
    jobs = [name for name in cloud.resources if name.startswith("jobs/")]
    return [name for name in jobs if wanted.items() <= cloud.resources[name]["properties"]["properties"].items()]


def summary(cloud: Cloud, name: str) -> dict[str, Any]:
    """A job as a scoring host shows it."""
    job = cloud.resources[name]
    return {
        "id": job["id"],
        "name": job["name"],
        "type": "Microsoft.MachineLearningServices/workspaces/batchEndpoints/jobs",
        "properties": {"name": job["name"], "status": job["properties"]["status"]},
    }


@routes.on("GET", "/jobs")
def list_jobs(cloud: Cloud, request: Request) -> Response:
    return Response({"value": cloud.list("jobs")})


@routes.on("GET", "/jobs/{job}")
def get_job(cloud: Cloud, request: Request, job: str) -> Response:
    if job in cloud.children.values():
        # The resource manager has no more to say of the children of a pipeline: the run history has.
        return Response({"id": f"{WORKSPACE_ARM_ID}/jobs/{job}", "name": job, "properties": None})
    if f"jobs/{job}" not in cloud.resources:
        raise not_found(f"Job {job}")
    return Response(cloud.resources[f"jobs/{job}"])


@routes.on("POST", "/jobs/{job}/cancel")
def cancel(cloud: Cloud, request: Request, job: str) -> Response:
    cloud.get(f"jobs/{job}")
    stop = cloud.running.get(f"jobs/{job}", lambda: None)
    return Response(status=202, headers=cloud.begin(f"jobs/{job}", stop))


@history.on("GET", "/runs/{run_id}")
def get_run(cloud: Cloud, request: Request, run_id: str) -> Response:
    return Response(_run(cloud, run_id))


@history.on("GET", "/runs/{run_id}/children")
def children(cloud: Cloud, request: Request, run_id: str) -> Response:
    found = [_run(cloud, cloud.children[run_id])] if run_id in cloud.children else []
    return Response({"value": found})


@history.on("GET", "/runs/{run_id}/details")
def details(cloud: Cloud, request: Request, run_id: str) -> Response:
    run, error = _run(cloud, run_id), _job(cloud, run_id).get("error")
    child = cloud.children.get(run_id, run_id)
    path = log_of(cloud, child).relative_to(cloud.blobs.container(_ARTIFACTS)).as_posix()
    url = f"{cloud.blobs.url(_ARTIFACTS)}/{path}?{cloud.blobs.sas(_ARTIFACTS)}"
    return Response(
        {"runId": run_id, "status": run["status"], "logFiles": {_LOG: url}, "warnings": [], "properties": {}}
        | ({"error": {"error": error}} if error else {})
    )


@history.on("POST", "/rundata")
def run_data(cloud: Cloud, request: Request) -> Response:
    # Without outputs: the SDK then looks where jobs leave them, and finds `score` there.
    return Response({"runMetadata": _run(cloud, request.json()["runId"]) | {"outputs": {}}})


def _job(cloud: Cloud, run_id: str) -> dict[str, Any]:
    parents = {child: job for job, child in cloud.children.items()}
    name = f"jobs/{parents.get(run_id, run_id)}"
    if name not in cloud.resources:
        raise not_found(f"Run {run_id}")
    return cloud.resources[name]


def _run(cloud: Cloud, run_id: str) -> dict[str, Any]:
    job = _job(cloud, run_id)
    parent = job["name"] if run_id != job["name"] else None
    return {
        "runId": run_id,
        "parentRunId": parent,
        "rootRunId": job["name"],
        "experimentId": job["properties"]["experimentName"],
        "displayName": "batchscoring" if parent else job["name"],
        "status": job["properties"]["status"],
        "createdUtc": job["systemData"]["createdAt"],
        "lastModifiedUtc": job["systemData"]["lastModifiedAt"],
        "createdBy": {"userName": "stand-in"},
        "tags": {},
        "properties": {},
        "services": {},
    }
