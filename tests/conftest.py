"""What several tests share: sd-emoji packaged once, and Azure's inference server running on it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

# Set before any test imports these libraries: no test reaches a network but loopback.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# urllib keeps the proxy that it first saw, and a test of Azure may have set one.
os.environ |= dict.fromkeys(["NO_PROXY", "no_proxy"], "127.0.0.1,localhost")
# Ignored where a shell started the tests in the background, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
SAMPLE = (REPOSITORY / "endpoints" / "requests" / "sample-request.json").read_bytes()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, headers, and the body as JSON."""

    status: int
    headers: dict[str, str]
    body: Any


def post(url: str, body: bytes | object, timeout: float = 300) -> Answer:
    """POST `body` (as JSON unless it is bytes) and return whatever comes back, errors too."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return Answer(response.status, dict(response.headers), json.loads(response.read()))
    except urllib.error.HTTPError as error:
        return Answer(error.code, dict(error.headers), json.loads(error.read()))


def decode(image: str) -> NDArray[np.uint8]:
    """The pixels, (height, width, 3), of a base64 image."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    """`sys.path` as it was: MLflow leaves a loaded package's code on it, and multiprocessing passes it on."""
    before = sys.path.copy()
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def emoji_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd-emoji as a package, in bfloat16 as it is packaged by default."""
    from sd_mlflow import checkpoint, packaging

    out = tmp_path_factory.mktemp("packages") / "sd-emoji"
    packaging.package(checkpoint.find(checkpoint.SD_EMOJI), out, dtype="bfloat16")
    return out


@pytest.fixture(scope="session")
def azure_server(emoji_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of Azure's real inference server, on loopback, with the real scoring script."""
    from sd_mlflow.demo import free_port
    from sd_mlflow.scoring.local import serving

    log = tmp_path_factory.mktemp("azure-server") / "server.log"
    with serving(emoji_package, free_port(), log=log) as url:
        yield url
