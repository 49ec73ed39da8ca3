"""A hub id is packaged at a pinned commit, from the files that count: against a stand-in hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import WEIGHTS, emoji_copy
from conftest import REPOSITORY

REPO, COMMIT = "someone/a-model", "0123456789abcdef0123456789abcdef01234567"
#: What else the repository offers, and nobody should ask for.
CLUTTER = [
    ".gitattributes",
    "a-model.ckpt",
    "scores.jpg",
    "text_tower/config.json",
    "text_tower/model.safetensors",
    *(f"{component}/{bin_stem}.bin" for component, (_, bin_stem) in WEIGHTS.items()),
    *(f"{component}/{stem}.fp16.safetensors" for component, (stem, _) in WEIGHTS.items()),
]


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub: a revision's commit, its files, and their content."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        names = sorted(file.relative_to(self.root).as_posix() for file in self.root.rglob("*") if file.is_file())
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            self.answer_json({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            self.answer_json([{"type": "file", "path": name, **self.described(name)} for name in names])
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
            self.asked.append(name)
            described = self.described(name)
            self.answer((self.root / name).read_bytes(), {"ETag": f'"{described["oid"]}"'})
        else:
            unknown = "RevisionNotFound" if path.startswith(f"/api/models/{REPO}/") else "RepoNotFound"
            self.answer(b"", {"X-Error-Code": unknown}, status=404)

    do_HEAD = do_GET

    def described(self, name: str) -> dict[str, Any]:
        content = (self.root / name).read_bytes()
        return {"size": len(content), "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest()}

    def answer_json(self, content: object) -> None:
        self.answer(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    root = emoji_copy(tmp_path_factory.mktemp("hub") / "repository")
    (root / "README.md").write_text("# The model card\n")
    for name in CLUTTER:
        (root / name).write_bytes(b"not to be had")
    Hub.root, Hub.asked = root, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def package(endpoint: str, home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`sd-mlflow package`, as a user runs it; the library reads the environment when it is imported."""
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "sd_mlflow.cli", "package", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
    )


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_hub_id_is_packaged_at_the_commit_of_its_revision(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    out = tmp_path / "package"
    ran = package(address(hub), tmp_path / "home", REPO, "--out", out, "--revision", "main")
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((out / "artifacts" / "checkpoint" / "manifest.json").read_text())
    assert (manifest["name"], manifest["revision"]) == (REPO, COMMIT)
    metadata = yaml.safe_load((out / "MLmodel").read_text())["metadata"]
    assert (metadata["checkpoint"], metadata["revision"]) == (REPO, COMMIT)
    assert (out / "artifacts" / "checkpoint" / "README.md").read_text() == "# The model card\n"

    offered = {file.relative_to(Hub.root).as_posix() for file in Hub.root.rglob("*") if file.is_file()}
    assert set(Hub.asked) == offered - set(CLUTTER)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["someone/unknown"], "RepositoryNotFoundError"),
        ([REPO, "--revision", "unknown"], "RevisionNotFoundError"),
    ],
    ids=["repository", "revision"],
)
def test_what_the_hub_does_not_know_is_one_clear_line(
    hub: ThreadingHTTPServer, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    ran = package(address(hub), tmp_path / "home", *arguments, "--out", tmp_path / "package")
    assert_one_line(ran, f"Error: {arguments[0]} cannot be had from the hub (", reason)
    assert not (tmp_path / "package").exists()


def test_a_hub_that_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    ran = package("http://127.0.0.1:9", tmp_path / "home", REPO, "--out", tmp_path / "package")
    assert_one_line(ran, f"Error: {REPO} cannot be had from the hub (", "refused")


def assert_one_line(ran: subprocess.CompletedProcess[str], start: str, reason: str) -> None:
    assert ran.returncode == 1
    (line,) = (ran.stdout + ran.stderr).strip().splitlines()
    assert line.startswith(start)
    assert reason in line
    assert "or give a folder" in line
