"""A deployment's container: the real inference server in a process of its own, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sd_mlflow.demo import free_port
from sd_mlflow.scoring.local import loopback
from stand_in.rest import AzureError

# The server's own command line listens on every interface; this is what it runs, on loopback.
_SERVER = (
    "import sys; from azureml_inference_server_http.amlserver_linux import run; "
    "run('127.0.0.1', int(sys.argv[1]), 1)"
)
_CRASH = "def init():\n    raise RuntimeError({message!r})\n\n\ndef run(data):\n    pass\n"
#: What a container does not inherit: the client's way to Azure, and the client's own code.
_NOT_INHERITED = (
    *("AZURE_", "AZUREML_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PYTHONPATH"),
)


def environment(*more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that Azure would run on a machine of its own."""
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith(_NOT_INHERITED)}
    for each in more:
        own |= {name: str(value) for name, value in each.items()}
    return own


@dataclass(frozen=True)
class Image:
    """What a container is started with: its folder has the model and the code where Azure puts them."""

    folder: Path
    model_dir: Path
    entry_script: str
    variables: Mapping[str, str]

    @classmethod
    def build(
        cls,
        folder: Path,
        model: Path,
        name: str,
        version: str,
        code: Path,
        script: str,
        variables: Mapping[str, str],
    ) -> Image:
        """Put the model's files (linked) and the code's (copied) under `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        model_dir = folder / "azureml-models" / name / version
        model_dir.mkdir(parents=True)
        if model.is_dir():
            shutil.copytree(model, model_dir / model.name, copy_function=os.link)
        else:
            os.link(model, model_dir / model.name)
        shutil.copytree(code, folder / code.name)
        return cls(folder, model_dir, f"{code.name}/{script}", variables)

    def crash(self, message: str) -> None:
        """Make `init` of the scoring script fail with `message`."""
        (self.folder / self.entry_script).write_text(_CRASH.format(message=message), encoding="utf-8")


@dataclass
class Container:
    """A running server: `url` answers once `wait` has returned."""

    image: Image
    log: Path
    package_environment: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = field(init=False)

    def __post_init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        azure = {
            "AML_APP_ROOT": str(self.image.folder),
            "AZUREML_ENTRY_SCRIPT": self.image.entry_script,
            "AZUREML_MODEL_DIR": str(self.image.model_dir),
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(port)],
                env=environment(self.package_environment, azure, self.image.variables),
                cwd=self.image.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> None:
        """Return once the readiness probe is answered; raises the error that Azure ends a deployment with."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(urllib.error.URLError, OSError), loopback.open(self.url, timeout=5):
                return
            time.sleep(0.1)
        probe = ": Readiness probe failed" if self.process.poll() is None else ""
        raise AzureError(
            400,
            None,  # as Azure has it
            f"ResourceNotReady: User container has crashed or terminated{probe}. Please see troubleshooting "
            "guide, available here: https://aka.ms/oe-tsg#error-resourcenotready",
        )

    def stop(self) -> None:
        """End the server and its worker, politely first."""
        end_group(self.process)


def end_group(process: subprocess.Popen[bytes], patience: float = 5) -> None:
    """End a process that leads a session, and what it started: a worker outlives a server that was killed."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
