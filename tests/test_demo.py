"""The demo: package, serve, ask, and write what came back."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY
from PIL import Image


def test_the_demo_leaves_the_package_the_response_and_the_pictures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "of an earlier run").touch()
    subprocess.run(
        [sys.executable, "-m", "sd_mlflow.demo", "endpoints/requests/sample-request.json", str(out)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "1.png",
        "2.png",
        "contact-sheet.png",
        "model",
        "response.json",
        "server.log",
    ]
    assert (out / "model" / "MLmodel").is_file()
    (record,) = json.loads((out / "response.json").read_bytes())
    assert list(record) == ["generated_images", "nsfw_content_detected"]
    assert len(record["nsfw_content_detected"]) == 2
    assert set(record["nsfw_content_detected"]) <= {"True", "False"}
    for image, file in zip(record["generated_images"], ("1.png", "2.png"), strict=True):
        assert (out / file).read_bytes() == base64.b64decode(image)
        with Image.open(out / file) as picture:
            assert picture.size == (128, 128)
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.size == (512, 256)
