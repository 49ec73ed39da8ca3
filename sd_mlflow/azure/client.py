"""The connection to Azure ML, and what its failures mean to whoever asked."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from azure.ai.ml import MLClient
from azure.ai.ml.exceptions import MlException, ValidationErrorType, ValidationException
from azure.core.exceptions import AzureError as SDKError
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.core.polling import LROPoller
from azure.identity import CredentialUnavailableError, DefaultAzureCredential
from marshmallow import ValidationError

from sd_mlflow.errors import SDMLflowError

#: Waits for what Azure is doing, by its name, and gives its result.
Wait = Callable[[str, LROPoller[Any]], Any]

_WORKSPACE = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE")
_LOGIN = "log in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
#: What Azure's message holds -> what to do about it.
_ADVICE = {
    r"quota|out ?of ?capacity": "choose another --instance-type or region, or ask for quota in the Azure portal",
    r"already (exists|taken|in use|an endpoint)": "choose another name with --endpoint",
    r"crashed|not ?ready|unhealthy|health": "the container did not become healthy; what it said is above",
    r"too ?many ?requests|throttl|429|unavailable|503": "Azure is busy: run the same command again in a minute",
    r"authorization ?failed|forbidden|does not have authorization": "ask for the role AzureML Data Scientist",
}


class AzureError(SDMLflowError):
    """Azure did not do what was asked; the message says what to do. `log` is what a container said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def connect() -> MLClient:
    """The workspace that the environment names, or else `.azureml/config.json`. Raises `AzureError`."""
    named = [os.environ.get(name) for name in _WORKSPACE]
    with errors("Connecting"):
        if all(named):
            return MLClient(DefaultAzureCredential(), *named, enable_telemetry=False)
        try:
            return MLClient.from_config(DefaultAzureCredential(), enable_telemetry=False)
        except MlException:
            variables = ", ".join(_WORKSPACE)
            raise AzureError(f"which workspace? Set {variables}, or save its config.json in .azureml/") from None


def connect_registry(registry: str) -> MLClient:
    """The registry of that name. Raises `AzureError`."""
    with errors(f"Registry {registry}"):
        return MLClient(DefaultAzureCredential(), registry_name=registry, enable_telemetry=False)


@contextmanager
def errors(doing: str) -> Iterator[None]:
    """Turn what the SDK raises while `doing` something into one sentence, an `AzureError`."""
    # The SDK logs what it does, and what it is about to raise.
    for name in ("azure", "azure.ai.ml"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except (ClientAuthenticationError, CredentialUnavailableError):
        raise AzureError(f"{doing}: Azure did not accept the login: {_LOGIN}") from None
    except ResourceNotFoundError as error:
        raise AzureError(f"{doing}: not found: {_sentence(error)}") from None
    except ValidationError as error:  # a YAML file, told as JSON amid prose
        wrong = re.findall(r'"([^"]+)": \[\s*"([^"]+)"', str(error))
        raise AzureError(f"{doing}: {'; '.join(map(': '.join, wrong)) or _sentence(error)}") from None
    except (SDKError, MlException) as error:
        said = _sentence(error)
        code = error.error.code if isinstance(error, HttpResponseError) and error.error else ""
        found = (advice for words, advice in _ADVICE.items() if re.search(words, f"{code} {said}", re.IGNORECASE))
        advice = next(found, "")
        raise AzureError(f"{doing}: {said}{'; ' if advice else ''}{advice}") from None


def _sentence(error: Exception) -> str:
    """The first sentence of an SDK error, without the codes and colours around it."""
    inner = getattr(error, "error", None)
    while details := getattr(inner, "details", None):  # "The request is invalid", and then why
        inner = details[0]
    text = getattr(inner, "message", None) or getattr(error, "message", None) or str(error)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(text))
    # What the SDK finds wrong by itself is a page, its points marked (x); some services answer JSON in prose.
    points = re.findall(r"\(x\) (.+)", plain) or re.findall(r'\["([^"]+)"\]', plain)
    lines = points or [line.strip() for line in plain.splitlines() if line.strip()]
    return re.sub(r"^\(\w+\) ", "", lines[0] if lines else type(error).__name__).rstrip(".")


def exists(get: Callable[[], object]) -> bool:
    """Whether `get` finds what it is to get."""
    try:
        get()
    except ResourceNotFoundError:
        return False
    except ValidationException as error:  # this is how it says that a name has no latest version
        if error.error_type != ValidationErrorType.RESOURCE_NOT_FOUND:
            raise
        return False
    return True
