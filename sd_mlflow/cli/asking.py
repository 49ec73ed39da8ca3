"""`sd-mlflow invoke`: ask what is deployed on Azure ML."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sd_mlflow.cli.app import console, say
from sd_mlflow.cli.cloud import asking_azure
from sd_mlflow.cli.drawing import FLAGS, given, with_flags
from sd_mlflow.errors import InvalidParameter, SDMLflowError


def invoke(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")],
    request: Annotated[Optional[Path], typer.Argument(help="A JSON request, instead of --prompt.")] = None,
    *,
    prompt: Annotated[Optional[str], typer.Option(help="What to draw.")] = None,
    prompts: Annotated[
        Optional[Path], typer.Option(help="A file or folder of prompts, for a batch endpoint.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("pictures"),
    deployment: Annotated[Optional[str], typer.Option(help="Not the one that traffic chooses.")] = None,
    **flags: Any,
) -> None:
    """Ask an endpoint, and write the pictures to files.

    Example: sd-mlflow invoke my-pictures --prompt "a red fox in the snow" --seed 7 --out pictures
    """
    if sum(source is not None for source in (request, prompt, prompts)) != 1:
        raise InvalidParameter("give one of a request file, --prompt and --prompts")
    params = given(flags)
    if prompts and params:
        raise InvalidParameter(f"{', '.join(params)}: in a batch, parameters are columns of the files of prompts")
    rows = _rows(request, prompt, params) if prompts is None else []
    with asking_azure():
        from sd_mlflow.azure import calls, client

        connected = client.connect()
        with console.status(f"Asking {endpoint}") as status:
            if prompts:
                calls.run_job(connected, endpoint, prompts, out, deployment, status.update)
                records = []
            else:
                records = calls.ask(connected, endpoint, rows, params | {"return_metadata": True}, deployment)
    if prompts:
        say("Downloaded", str(out))
    _write(records, out)


with_flags(invoke, "orient", "return_metadata")


def _rows(request: Path | None, prompt: str | None, params: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows to ask for, `params` filled up with those of the file `request`; validated here."""
    from sd_mlflow import contract, forms
    from sd_mlflow.settings import Settings

    rows = [{contract.PROMPT: prompt}]
    if request:
        try:
            rows, written = forms.read_body(request.read_bytes())
        except OSError as error:
            raise SDMLflowError(f"{request} cannot be read: {error.strerror}") from None
        params |= written | params
    contract.parse(rows, params, Settings())
    return rows


def _write(records: list[dict[str, Any]], out: Path) -> None:
    """Write the pictures of `records` into the folder `out`, and say of each how to make it again."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    pictures = [
        picture
        for record in records
        for picture in zip(
            record["generated_images"], record["nsfw_content_detected"], record["seed"], strict=True
        )
    ]
    for number, (image, flag, seed) in enumerate(pictures, start=1):
        encoded = base64.b64decode(image)
        kind = str(Image.open(io.BytesIO(encoded)).format).lower()
        file = out / f"{number}.{kind}"
        file.write_bytes(encoded)
        say(str(file), f"seed {seed}{FLAGS[flag]}")
