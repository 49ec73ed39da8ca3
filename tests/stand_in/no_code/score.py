"""What the stand-in serves an MLflow model with that brings no scoring script: the part that clients see.

Azure has its own script in its images. This one takes `input_data` in pandas' split form, strictly,
and `params` at the top level, and answers with what the model predicts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd

_model: Any


def init() -> None:
    global _model
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    _model = mlflow.pyfunc.load_model(str(next(root.glob("*/MLmodel")).parent))


def run(raw: str) -> Any:
    body = json.loads(raw)
    frame = pd.DataFrame(**body["input_data"])
    prediction = _model.predict(frame, params=body.get("params"))
    return prediction.to_dict("records") if isinstance(prediction, pd.DataFrame) else prediction
