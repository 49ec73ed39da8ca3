"""`sd-mlflow register`, `deploy`, `traffic` and `delete`: the package on Azure ML.

The workspace is that of AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP and AZUREML_WORKSPACE, or of a
file `.azureml/config.json`, as the portal offers it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
import yaml

from sd_mlflow.cli.app import PackageArgument, console, say
from sd_mlflow.cli.packages import checked
from sd_mlflow.errors import InvalidParameter, SDMLflowError

if TYPE_CHECKING:
    from azure.core.polling import LROPoller

#: Longer than a deployment of v1-4 takes; Azure goes on by itself after it.
_PATIENCE_SECONDS = 3600

deploy_app = typer.Typer(no_args_is_help=True, help="Create or update an endpoint and a deployment.")

Endpoint = Annotated[Optional[str], typer.Option(help="Its name, unique in its region, instead of the file's.")]
ModelReference = Annotated[
    Optional[str], typer.Option(help="azureml:NAME:VERSION or azureml:NAME@latest, instead of the file's.")
]
EnvironmentReference = Annotated[Optional[str], typer.Option(help="As --model; its own default is the file's.")]
DeploymentName = Annotated[Optional[str], typer.Option(help="Its name, instead of the file's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved YAML, and ask Azure nothing.")]
Batch = Annotated[bool, typer.Option("--batch", help="It is a batch endpoint.")]


def register(
    directory: PackageArgument,
    name: Annotated[str, typer.Option(help="The model's name at Azure.")] = "stable-diffusion-v1-4",
    version: Annotated[Optional[str], typer.Option(help="Its version; the next one if not given.")] = None,
    registry: Annotated[Optional[str], typer.Option(help="A registry, instead of the workspace.")] = None,
) -> None:
    """Upload a package as a model of a workspace or a registry; the same package only once.

    Example: sd-mlflow register model --name stable-diffusion-v1-4
    """
    manifest = checked(directory)
    with asking_azure():
        from sd_mlflow.azure import assets, client

        connected = client.connect_registry(registry) if registry else client.connect()
        model = assets.register(connected, directory, manifest, name, version)
    place = f"azureml://registries/{registry}/models/{name}/versions/" if registry else f"azureml:{name}:"
    say("Registered", f"{place}{model.version}")


@deploy_app.command("online")
def deploy_online(
    endpoint: Endpoint = None,
    deployment: DeploymentName = None,
    model: ModelReference = None,
    environment: EnvironmentReference = None,
    instance_type: Annotated[Optional[str], typer.Option(help="Azure's name of a machine.")] = None,
    instance_count: Annotated[Optional[int], typer.Option(min=1, help="How many of them.")] = None,
    file: Annotated[Path, typer.Option(help="The deployment's YAML.")] = Path("endpoints/online/deployment.yml"),
    endpoint_file: Annotated[Path, typer.Option(help="The endpoint's.")] = Path("endpoints/online/endpoint.yml"),
    dry_run: DryRun = False,
) -> None:
    """Deploy a registered model behind a real-time endpoint; its first deployment gets the traffic.

    Example: sd-mlflow deploy online --endpoint my-pictures --model azureml:stable-diffusion-v1-4:1
    """
    with asking_azure():
        from sd_mlflow.azure import client, endpoints

        changed = {
            "name": deployment,
            "model": model,
            "environment": environment,
            "instance_type": instance_type,
            "instance_count": instance_count,
        }
        made = endpoints.load(endpoints.ONLINE, endpoint_file, file, endpoint, changed)
        if dry_run:
            return _print_yaml(*made)
        connected = client.connect()
        there = endpoints.deploy(endpoints.ONLINE, connected, *made, wait)
    say("Deployed", f"{made[1].name} of {there.name}: {there.scoring_uri}")
    say("Try:", f'sd-mlflow invoke {there.name} --prompt "a photograph of an astronaut riding a horse"')
    return None


@deploy_app.command("batch")
def deploy_batch(
    endpoint: Endpoint = None,
    deployment: DeploymentName = None,
    model: ModelReference = None,
    environment: EnvironmentReference = None,
    compute: Annotated[Optional[str], typer.Option(help="azureml:NAME of a cluster.")] = None,
    file: Annotated[Path, typer.Option(help="The deployment's YAML.")] = Path("endpoints/batch/deployment.yml"),
    endpoint_file: Annotated[Path, typer.Option(help="The endpoint's.")] = Path("endpoints/batch/endpoint.yml"),
    compute_file: Annotated[Path, typer.Option(help="The cluster's, if it is to be made.")] = Path(
        "endpoints/batch/compute.yml"
    ),
    dry_run: DryRun = False,
) -> None:
    """Deploy a registered model behind a batch endpoint, as its default; the cluster is made if it is missing.

    Example: sd-mlflow deploy batch --endpoint my-batches --model azureml:stable-diffusion-v1-4:1
    """
    with asking_azure():
        from sd_mlflow.azure import assets, client, endpoints

        changed = {"name": deployment, "model": model, "environment": environment, "compute": compute}
        made = endpoints.load(endpoints.BATCH, endpoint_file, file, endpoint, changed)
        if dry_run:
            return _print_yaml(*made)
        connected = client.connect()
        cluster = str(made[1].compute).removeprefix("azureml:")
        assets.ensure_compute(connected, cluster, compute_file, wait)
        there = endpoints.deploy(endpoints.BATCH, connected, *made, wait)
    say("Deployed", f"{made[1].name} of {there.name}")
    say("Try:", f"sd-mlflow invoke {there.name} --prompts prompts.csv --out pictures")
    return None


def traffic(
    endpoint: Annotated[str, typer.Argument(help="An online endpoint.")],
    shares: Annotated[list[str], typer.Argument(help="DEPLOYMENT=PERCENT, 100 in all.")],
) -> None:
    """Share the calls of an online endpoint between its deployments.

    Example: sd-mlflow traffic my-pictures blue=90 green=10
    """
    parted = [share.partition("=") for share in shares]
    for share, (name, _, percent) in zip(shares, parted, strict=True):
        if not (name and percent.isdigit() and int(percent) <= 100):
            raise InvalidParameter(f"a share must be DEPLOYMENT=PERCENT, 0 to 100; got {share!r}")
    percents = {name: int(percent) for name, _, percent in parted}
    if sum(percents.values()) != 100:
        raise InvalidParameter(f"the shares must be 100 in all, got {sum(percents.values())}")
    with asking_azure():
        from sd_mlflow.azure import calls, client

        calls.direct(client.connect(), endpoint, percents, wait)
    say("Traffic", ", ".join(f"{name} {percent}%" for name, percent in percents.items()))


def delete(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")],
    deployment: Annotated[Optional[str], typer.Option(help="Only this deployment of it.")] = None,
    batch: Batch = False,
) -> None:
    """Delete an endpoint and its deployments, or one deployment. Models stay.

    Example: sd-mlflow delete my-pictures --deployment blue
    """
    with asking_azure():
        from sd_mlflow.azure import client, endpoints

        kind = endpoints.BATCH if batch else endpoints.ONLINE
        connected = client.connect()
        endpoints.delete(kind, connected, endpoint, deployment, wait)
    say("Deleted", f"{deployment} of {endpoint}" if deployment else endpoint)


@contextmanager
def asking_azure() -> Iterator[None]:
    """What a container said is shown before the sentence that it failed."""
    if find_spec("azure.ai.ml") is None:
        raise SDMLflowError("Azure's SDK is not installed: pip install 'sd_mlflow[azure]'")
    from sd_mlflow.azure.client import AzureError

    try:
        yield
    except AzureError as error:
        if error.log:
            console.print(error.log, markup=False, highlight=False, soft_wrap=True)
        raise
    except KeyboardInterrupt:
        say("Stopped", "waiting; Azure goes on with what it has begun", "yellow")
        raise typer.Exit(130) from None


def wait(what: str, poller: LROPoller[Any]) -> Any:
    """Show what Azure is doing until it is done. Raises `AzureError` where it takes more than an hour."""
    from sd_mlflow.azure.client import AzureError

    began = time.monotonic()
    # The SDK prints dots.
    with console.status(what) as status, redirect_stdout(io.StringIO()):
        while not poller.done():
            seconds = time.monotonic() - began
            if seconds > _PATIENCE_SECONDS:
                raise AzureError(f"{what} has taken an hour: look in the Azure portal what became of it")
            status.update(f"{what}: {seconds:.0f} s")
            poller.wait(1)
    return poller.result()


def _print_yaml(*entities: Any) -> None:
    """The entities as Azure will get them, one YAML document each, on standard output."""
    for entity in entities:
        document = io.StringIO()
        endpoint = entity.dump(document)  # written into the document, but of an endpoint returned
        print("---", document.getvalue().strip() or yaml.safe_dump(dict(endpoint)).strip(), sep="\n")
