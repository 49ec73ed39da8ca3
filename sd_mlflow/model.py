"""The `mlflow.pyfunc` model: rows in, records out, through every stage in turn.

`TextToImage` composes the stages and raises the errors of `sd_mlflow.errors`;
`StableDiffusionModel` is what MLflow loads, and translates them once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.pyfunc import PythonModel, PythonModelContext

from sd_mlflow import contract, images, pipeline
from sd_mlflow.engine import Engine
from sd_mlflow.errors import GenerationFailed, RequestError
from sd_mlflow.forms import read_rows
from sd_mlflow.jobs import Caller, GeneratedImage
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.progress import Watcher
from sd_mlflow.settings import Settings

_log = logging.getLogger(__name__)

#: The package's artifacts: the checkpoint folder, and the settings that it was packaged with.
CHECKPOINT, SETTINGS = "checkpoint", "settings"


class TextToImage:
    """A checkpoint that answers requests. `folder` holds a manifest; see `sd_mlflow.pipeline.load` for errors."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self._engine = Engine(
            lambda dtype: pipeline.load(folder, settings.device, dtype, settings.execution), settings
        )

    @classmethod
    def of_package(cls, package: Path, **settings: Any) -> TextToImage:
        """The model of a folder that `sd_mlflow.packaging.package` wrote; `settings` go before the package's."""
        artifacts = package / "artifacts"
        return cls.of_artifacts(artifacts / CHECKPOINT, artifacts / f"{SETTINGS}.json", **settings)

    @classmethod
    def of_artifacts(cls, checkpoint: Path, packaged: Path, **settings: Any) -> TextToImage:
        """The checkpoint folder `checkpoint`, with `settings`, and for the rest those in the file `packaged`."""
        return cls(checkpoint, Settings(**json.loads(packaged.read_text(encoding="utf-8")) | settings))

    @property
    def digest(self) -> str:
        """The checkpoint's identity: SHA-256, in hexadecimal."""
        return self._engine.pipeline.manifest.digest

    def answer(
        self, rows: Sequence[contract.Row], parameters: Mapping[str, Any], watcher: Watcher | None = None
    ) -> list[dict[str, list[Any]]]:
        """The records that answer `rows`; `watcher` sees every step. Raises `RequestError`."""
        request = self.parse(rows, parameters)
        answers = [
            contract.ImageAnswer(
                row=image.request.row,
                encoded=self.encode(image, request),
                flag=image.verdict.value,
                metadata=self._recipe(image),
            )
            for image in self._engine.generate(request.images, watcher)
        ]
        return contract.records(request, answers)

    def parse(self, rows: Sequence[contract.Row], parameters: Mapping[str, Any]) -> contract.GenerationRequest:
        """The request that `rows` make, within this model's limits. Raises `RequestError`."""
        return contract.parse(rows, parameters, self.settings)

    def submit(
        self, requests: Sequence[ImageRequest], caller: Caller | None = None
    ) -> list[Future[GeneratedImage]]:
        """Start on images without waiting for them; see `Engine.submit`. Raises `RequestError`."""
        return self._engine.submit(requests, caller)

    def encode(self, image: GeneratedImage, request: contract.GenerationRequest) -> bytes:
        """The file that `image` becomes, carrying how it was made and its flag."""
        provenance = self._recipe(image) | {contract.FLAGS: image.verdict.value}
        if self.settings.prompt_in_provenance:
            provenance |= {"prompt": image.request.prompt, "negative_prompt": image.request.negative_prompt}
        return images.encode(image.pixels, request.image_format, request.image_quality, provenance)

    def close(self) -> None:
        """Stop the engine; callers that still wait get `NotReady`."""
        self._engine.close()

    def _recipe(self, image: GeneratedImage) -> dict[str, Any]:
        """What makes `image` again, the prompts aside."""
        height, width, _ = image.pixels.shape
        return {
            "seed": image.request.seed,
            "num_inference_steps": image.request.num_inference_steps,
            "guidance_scale": image.request.guidance_scale,
            "scheduler": image.request.scheduler or self._engine.pipeline.scheduler_name,
            "preset": image.request.preset,
            "height": height,
            "width": width,
            "model": f"{self._engine.pipeline.manifest.name}@{self._engine.pipeline.manifest.digest[:12]}",
        }


class StableDiffusionModel(PythonModel):  # type: ignore[misc]
    """What MLflow loads. `text_to_image` answers with this project's own errors, for servers that show them."""

    text_to_image: TextToImage

    def load_context(self, context: PythonModelContext) -> None:
        """Load the packaged checkpoint. Raises `PackageError`."""
        paths = context.artifacts
        self.text_to_image = TextToImage.of_artifacts(Path(paths[CHECKPOINT]), Path(paths[SETTINGS]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row of `generated_images` and `nsfw_content_detected` for the request, or one a row of it.

        `model_input` is a DataFrame, a dict of columns, a list of records or of strings. Raises
        `MlflowException` whose error code is the HTTP status of the `RequestError` behind it.
        """
        try:
            return pd.DataFrame(self.text_to_image.answer(_rows(model_input), params or {}))
        except RequestError as error:
            raise _translated(error) from None
        except Exception as error:
            # MLflow's server would show the caller the whole stack.
            _log.exception("a request failed")
            raise _translated(GenerationFailed("the model could not answer this request")) from error


def _translated(error: RequestError) -> MlflowException:
    message = error.message if error.row is None else f"row {error.row}: {error.message}"
    return MlflowException(message, error_code=ErrorCode.Value(_ERROR_CODES[error.status]))


#: HTTP status -> MLflow's error code that its server answers with that status, or the nearest.
_ERROR_CODES = {
    400: "INVALID_PARAMETER_VALUE",
    413: "INVALID_PARAMETER_VALUE",
    422: "INVALID_PARAMETER_VALUE",
    429: "RESOURCE_EXHAUSTED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


_enforce_schema = mlflow.pyfunc._enforce_schema
_OUR_ROWS = contract.signature().inputs


def validate_rows_ourselves() -> None:
    """Let rows of models with our signature through to `predict`, where the contract validates them.

    MLflow's own enforcement of a signature with named columns refuses a list of strings and an
    integer for an optional double, and drops unknown columns before the model can name them. The
    signature has to stay: Azure's no-code server does not start without one.
    """
    mlflow.pyfunc._enforce_schema = _enforce_other_schemas


def _enforce_other_schemas(data: Any, schema: Any, flavor: str | None = None) -> Any:
    return data if schema == _OUR_ROWS else _enforce_schema(data, schema, flavor)


def _rows(model_input: Any) -> list[dict[str, Any]]:
    """The rows of what MLflow's surfaces hand over: pandas and numpy become plain lists and dicts."""
    if isinstance(model_input, pd.DataFrame):
        cells = model_input.astype(object).where(model_input.notna(), None)
        model_input = [{str(name): cell for name, cell in row.items()} for row in cells.to_dict("records")]
    elif isinstance(model_input, dict):
        model_input = {name: _plain(column) for name, column in model_input.items()}
    return read_rows(_plain(model_input), "the input")


def _plain(data: Any) -> Any:
    return data.tolist() if isinstance(data, np.ndarray | np.generic | pd.Series) else data
