"""The whole way in one go: `python -m sd_mlflow.demo REQUEST OUT` packages sd-emoji, serves it and asks it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import urllib.request
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from sd_mlflow import checkpoint, packaging
from sd_mlflow.images import contact_sheet
from sd_mlflow.scoring.local import loopback, serving

console = Console()


def demo(
    request: Annotated[Path, typer.Argument(help="The JSON body to send.")],
    out: Annotated[Path, typer.Argument(help="The folder for package, response and pictures; replaced.")],
) -> None:
    """Package sd-emoji, serve it with Azure's inference server, send REQUEST, and write the pictures to OUT."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with console.status("Packaging sd-emoji"):
        packaging.package(checkpoint.find(checkpoint.SD_EMOJI), out / "model", dtype="bfloat16")
    console.print(f"package: {out / 'model'}")
    with (
        console.status("Starting the Azure inference server"),
        serving(out / "model", free_port(), log=out / "server.log") as url,
    ):
        console.print(f"POST {url}/score  {request}")
        response = post(f"{url}/score", request.read_bytes())
    (out / "response.json").write_bytes(response)
    console.print(f"response: {out / 'response.json'}")
    (record,) = json.loads(response)
    pictures = []
    for number, (image, flag) in enumerate(
        zip(record["generated_images"], record["nsfw_content_detected"], strict=True), start=1
    ):
        encoded = base64.b64decode(image)
        file = out / f"{number}.png"
        file.write_bytes(encoded)
        pictures.append(Image.open(io.BytesIO(encoded)))
        console.print(f"picture: {file}  nsfw_content_detected {flag}")
    contact_sheet(pictures, columns=len(pictures)).save(out / "contact-sheet.png")
    console.print(f"contact sheet: {out / 'contact-sheet.png'}")


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def post(url: str, body: bytes) -> bytes:
    """The body of the answer to `body`, sent as JSON."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with loopback.open(request, timeout=200) as response:
        answer: bytes = response.read()
        return answer


if __name__ == "__main__":
    typer.run(demo)
