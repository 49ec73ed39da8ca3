"""Azure ML's batch contract: `init()` and `run(mini_batch)`, a mini-batch being paths of prompt files.

The images go to `AZUREML_BI_OUTPUT_PATH`, the prediction rows back to Azure as lines of JSON. A
mini-batch that is tried again makes only what is missing, and returns the same lines.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow.pyfunc

if TYPE_CHECKING:
    from sd_mlflow.model import TextToImage

_model: TextToImage


def init() -> None:
    """Load the package; raises `PackageError` if it is not whole."""
    global _model
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    # Azure mounts the registered folder here, or one folder further down.
    packages = [path.parent for pattern in ("MLmodel", "*/MLmodel") for path in sorted(root.glob(pattern))]
    if not packages:
        raise FileNotFoundError(f"{root} holds no MLmodel: it must be a package made by `sd-mlflow package`")
    # Alone in its call and never late: then an image is the same to the byte whatever else is in work.
    os.environ.setdefault("SD_MLFLOW_MAX_BATCH_SIZE", "1")
    os.environ.setdefault("SD_MLFLOW_DEADLINE_SECONDS", "86400")
    _model = mlflow.pyfunc.load_model(str(packages[0])).unwrap_python_model().text_to_image


def run(mini_batch: list[str]) -> list[str]:
    """One line of JSON for every row of every file of `mini_batch`; a file that cannot be read is one too."""
    from sd_mlflow import bulk
    from sd_mlflow.store import ImageStore

    parameters = json.loads(os.environ.get("SD_MLFLOW_PARAMETERS", "{}"))
    scorer = bulk.Scorer(_model, ImageStore(os.environ["AZUREML_BI_OUTPUT_PATH"]), parameters)
    return [prediction.to_json() for path in sorted(mini_batch) for prediction in scorer.score(Path(path))]
