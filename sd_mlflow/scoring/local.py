"""What a managed online endpoint runs, on this machine: the Azure inference server on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from sd_mlflow.errors import SDMLflowError

# The server's own command line listens on every interface; this is what it runs, on loopback.
_SERVER = (
    "import sys; from azureml_inference_server_http.amlserver_linux import run; "
    "run('127.0.0.1', int(sys.argv[1]), 1)"
)
_ONLINE_SCRIPT = Path(__file__).with_name("online.py")
_STARTUP_SECONDS = 600
#: Opens URLs of this machine, whatever proxy the environment names for others.
loopback = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(SDMLflowError):
    """The server did not start, or stopped."""


@contextmanager
def serving(
    package: Path,
    port: int,
    *,
    threads: int = 8,
    script: Path = _ONLINE_SCRIPT,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[str]:
    """Serve `package` while the context lasts: yields the server's URL once it is healthy.

    One worker with `threads` threads, as the deployment has it: the engine is what queues.
    `log` takes the server's output. Raises `ServerError` if it does not start.
    """
    if find_spec("azureml_inference_server_http") is None:
        raise ServerError("Azure's inference server is not installed: pip install 'sd_mlflow[serve]'")
    _need_free(port)
    child = dict(os.environ) | {
        "AML_APP_ROOT": str(script.parent.resolve()),
        "AZUREML_ENTRY_SCRIPT": script.name,
        "AZUREML_MODEL_DIR": str(package.resolve()),
        "GUNICORN_CMD_ARGS": f"--threads {threads}",
        "HF_HUB_OFFLINE": "1",
    }
    child |= environment or {}
    output = log.open("wb") if log else None
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)],
        env=child,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(process, url, log)
        yield url
    finally:
        _stop(process)
        if output:
            output.close()


def _need_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(f"port {port} cannot be used ({error.strerror}): give another") from None


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path | None) -> None:
    where = f"; its output is in {log}" if log else ""
    end = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerError(f"the server stopped with status {process.returncode}{where}")
        try:
            with loopback.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ServerError(f"the server was not healthy within {_STARTUP_SECONDS} s{where}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, politely first; a worker outlives a server that was killed."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
