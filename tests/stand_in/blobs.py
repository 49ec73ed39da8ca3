"""Azure's blob storage: containers are folders, blobs are files, and a SAS opens one container."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from stand_in.rest import AzureError, Request, Response, bad_request

DOMAIN = "blob.core.windows.net"
ACCOUNT = "standinstorage"
#: The datastores of a new workspace, and the containers behind them.
DATASTORES = {"workspaceblobstore": "azureml-blobstore", "workspaceartifactstore": "azureml"}


class Blobs:
    """The blobs of one storage account, under `folder`; `secret` makes the signatures."""

    def __init__(self, secret: Callable[[], str], folder: Path) -> None:
        self._secret, self._folder = secret, folder
        self._metadata: dict[Path, dict[str, str]] = {}
        self._shared: dict[str, str] = {}

    def container(self, name: str) -> Path:
        """The folder of a container, made if it is new."""
        folder = self._folder / ACCOUNT / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def url(self, container: str) -> str:
        return f"https://{ACCOUNT}.{DOMAIN}/{container}"

    def sas(self, container: str) -> str:
        """A new shared access signature for `container`."""
        signature = self._secret()
        self._shared[signature] = container
        return f"sv=2024-11-04&sr=c&sp=rwdl&se=2099-01-01T00%3A00%3A00Z&sig={quote(signature, safe='')}"

    def find(self, uri: str) -> Path:
        """Where the blob or the folder of blobs at `uri` lies: a datastore path, or a URL of this account.

        Raises `AzureError` if nothing is there.
        """
        datastore = re.match(r"azureml://(?:.*/)?datastores/([^/]+)/paths/(.+)", uri)
        blob = re.match(rf"https://{ACCOUNT}\.{re.escape(DOMAIN)}/([^/?]+)/?([^?]*)", uri)
        if datastore and datastore[1] in DATASTORES:
            path = self._path(DATASTORES[datastore[1]], unquote(datastore[2]))
        elif blob:
            path = self._path(blob[1], unquote(blob[2]))
        else:
            raise bad_request(f"{uri.partition('?')[0]} is not in a datastore of the workspace.")
        if not path.exists():
            raise bad_request(f"There is nothing at {uri.partition('?')[0]}.")
        return path

    def answer(self, request: Request) -> Response:
        """What the storage service answers; raises `AzureError`."""
        container, _, blob = unquote(request.path.lstrip("/")).partition("/")
        if self._shared.get(request.query.get("sig", "")) != container:
            raise AzureError(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        if not blob:
            return self._list(container, request.query)
        path, part = self._path(container, blob), request.query.get("comp", "")
        if request.method == "PUT":
            return self._put(path, part, request)
        if not path.is_file():
            raise AzureError(404, "BlobNotFound", "The specified blob does not exist.")
        if request.method == "DELETE":
            path.unlink()
            return Response(status=202)
        return self._get(path, request)

    def _path(self, container: str, blob: str) -> Path:
        folder = self.container(container)
        path = Path(os.path.normpath(folder / blob))
        if not path.is_relative_to(folder):
            raise bad_request(f"The blob name {blob} leaves its container.")
        return path

    def _put(self, path: Path, part: str, request: Request) -> Response:
        if part not in ("", "metadata", "block", "blocklist"):
            raise AzureError(400, "StandIn", f"The stand-in's blobs have no {part}.")
        if part == "metadata":
            self._metadata[path] = _metadata(request.headers)
            return Response(status=200, headers=_stamp(path))
        if part == "block":
            block = self._block(path, request.query["blockid"])
            block.parent.mkdir(parents=True, exist_ok=True)
            block.write_bytes(request.body)
            return Response(status=201)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written elsewhere, then moved: who reads at the same time sees all of it or nothing.
        whole = self._folder / ".parts" / uuid.uuid4().hex
        whole.parent.mkdir(exist_ok=True)
        with whole.open("wb") as file:
            if part == "blocklist":
                for id_ in re.findall(rb"<(?:Latest|Uncommitted)>(.+?)</", request.body):
                    block = self._block(path, id_.decode())
                    file.write(block.read_bytes())
                    block.unlink()
            else:
                file.write(request.body)
        whole.replace(path)
        self._metadata[path] = _metadata(request.headers)
        return Response(status=201, headers=_stamp(path))

    def _block(self, path: Path, id_: str) -> Path:
        blob = hashlib.sha256(str(path).encode()).hexdigest()
        return self._folder / ".blocks" / blob / hashlib.sha256(base64.b64decode(id_)).hexdigest()

    def _get(self, path: Path, request: Request) -> Response:
        size = path.stat().st_size
        headers = _stamp(path) | {"x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes"}
        headers |= {f"x-ms-meta-{name}": value for name, value in self._metadata.get(path, {}).items()}
        if request.method == "HEAD":
            return Response(status=200, headers=headers | {"Content-Length": str(size)})
        asked = re.match(
            r"bytes=(\d+)-(\d*)", request.headers.get("x-ms-range") or request.headers.get("Range") or ""
        )
        if not asked:
            return Response(path.read_bytes(), 200, headers)
        first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
        if first >= size:
            range_ = {"Content-Range": f"bytes */{size}"}
            raise AzureError(
                416, "InvalidRange", "The range specified is invalid for the size of the blob.", range_
            )
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        return Response(content, 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    def _list(self, container: str, query: Mapping[str, str]) -> Response:
        folder, prefix = self.container(container), query.get("prefix", "")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        found = [path for path in paths if path.relative_to(folder).as_posix().startswith(prefix)]
        blobs = "".join(self._entry(path, path.relative_to(folder).as_posix()) for path in found)
        xml = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{escape(container)}">'
        xml += f"<Prefix>{escape(prefix)}</Prefix><Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>"
        return Response(xml.encode(), 200, {"Content-Type": "application/xml"})

    def _entry(self, path: Path, name: str) -> str:
        stamp = _stamp(path)
        metadata = "".join(f"<{key}>{escape(text)}</{key}>" for key, text in self._metadata.get(path, {}).items())
        return (
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{stamp['Last-Modified']}</Last-Modified>"
            f"<Etag>{escape(stamp['ETag'])}</Etag><Content-Length>{path.stat().st_size}</Content-Length>"
            f"<BlobType>BlockBlob</BlobType></Properties><Metadata>{metadata}</Metadata></Blob>"
        )


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower()[10:]: text for name, text in headers.items() if name.lower().startswith("x-ms-meta-")}


def _stamp(path: Path) -> dict[str, str]:
    changed = path.stat().st_mtime_ns
    return {"ETag": f'"0x{changed:X}"', "Last-Modified": formatdate(changed / 1e9, usegmt=True)}
