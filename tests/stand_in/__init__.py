"""Azure Machine Learning on loopback, for the unmodified SDK, and it runs what is deployed.

A test fixture: a small TLS server behind a CONNECT proxy is every host that azure-identity, azure-ai-ml
and azure-storage-blob call. Clients reach it by environment variables alone, in this process or in one
that they start. One subscription, one resource group, one workspace and one registry exist from the start.

    with stand_in.running(folder) as azure:
        os.environ.update(azure.environment)
        MLClient(DefaultAzureCredential(), azure.subscription_id, azure.resource_group, azure.workspace)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stand_in import faults, names, services
from stand_in.certificates import Authority
from stand_in.cloud import Cloud
from stand_in.faults import Fault
from stand_in.proxy import Proxy

__all__ = ["Azure", "faults", "running"]


class Azure:
    """What a test sees of the stand-in."""

    subscription_id = names.SUBSCRIPTION
    resource_group = names.RESOURCE_GROUP
    workspace = names.WORKSPACE
    registry = names.REGISTRY

    def __init__(self, cloud: Cloud, proxy: str, authority: Path) -> None:
        self._cloud = cloud
        self.folder = cloud.folder
        proxies = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
        #: Merge this into the environment of a client.
        self.environment = {
            **proxies,
            # Where a machine has a proxy of its own, this is how its name may be spelt, and it would win.
            **{name.lower(): value for name, value in proxies.items()},
            "REQUESTS_CA_BUNDLE": str(authority),
            "SSL_CERT_FILE": str(authority),
            "AZURE_TENANT_ID": names.TENANT,
            "AZURE_CLIENT_ID": names.CLIENT,
            "AZURE_CLIENT_SECRET": cloud.client_secret,
            "AZURE_SUBSCRIPTION_ID": self.subscription_id,
            "AZURE_RESOURCE_GROUP": self.resource_group,
            "AZUREML_WORKSPACE": self.workspace,
            # Jobs here take seconds: ask for their state as often as the SDK can.
            "AZUREML_RUN_POLLING_INTERVAL_MIN": "1",
            "AZUREML_RUN_POLLING_INTERVAL_MAX": "1",
        }

    @property
    def secrets(self) -> set[str]:
        """Every token, key, signature and client secret handed out so far: none may show in any output."""
        return set(self._cloud.secrets)

    @property
    def problems(self) -> list[str]:
        """Requests that it did not know or refused as malformed, and its own failures."""
        return list(self._cloud.problems)

    @property
    def log(self) -> str:
        """Every request so far, a line each: method, URL without query, status, what was wrong."""
        file = self.folder / "requests.log"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def resources(self) -> list[str]:
        """The names of all that exists, sorted: `models/NAME/versions/1`, `onlineEndpoints/NAME`..."""
        return sorted(self._cloud.resources)

    def traffic(self, endpoint: str) -> dict[str, int]:
        """Percentages by deployment."""
        return dict(self._cloud.resources[f"onlineEndpoints/{endpoint}"]["properties"]["traffic"])

    def servers(self) -> list[str]:
        """The loopback URLs of the deployments that run."""
        return [url for url, _ in self._cloud.servers.values()]

    def play(self, fault: Fault) -> None:
        """Let something go wrong; see `faults`."""
        self._cloud.faults.append(fault)

    def clear(self) -> None:
        """Play no more faults, and forget the problems."""
        self._cloud.faults.clear()
        self._cloud.problems.clear()


@contextmanager
def running(folder: Path, package_environment: Mapping[str, str] | None = None) -> Iterator[Azure]:
    """Azure while the context lasts; blobs, logs and what deployments run on lie in `folder`.

    `package_environment` is set in every container and batch process, below the deployment's own variables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cloud = Cloud(folder.resolve(), dict(package_environment or {}))
    authority = Authority(folder / "certificates")
    proxy = Proxy(authority, lambda request: services.answer(cloud, request))
    proxy.start()
    try:
        yield Azure(cloud, proxy.url, authority.file)
    finally:
        proxy.stop()
        cloud.close()
