"""Spark: a DataFrame of prompts in, the same DataFrame with a `prediction` out.

Each executor takes one task at a time and so holds one model. Rows travel as Arrow batches;
images go from the executor to a folder or store under names made from content, so an attempt that
was killed, tried again or run twice for speed (speculation) leaves the same files. The cluster's
Python needs `sd_mlflow[spark]`, and must reach the package at `model_uri`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import DataFrame
from pyspark.sql import types as t
from pyspark.sql.pandas.types import to_arrow_type

from sd_mlflow import bulk, contract, tables
from sd_mlflow.errors import InvalidRequest
from sd_mlflow.model import TextToImage
from sd_mlflow.parameters import PARAMETERS
from sd_mlflow.settings import Settings
from sd_mlflow.store import ImageStore

#: The column that `generate` adds.
PREDICTION = "prediction"
#: Rows that leave an executor at a time: inline images must not fill its memory.
_ROWS_OUT = 16
#: Columns that say what to draw; any other is carried along.
_READ = {*contract.COLUMNS, *PARAMETERS}

_STRINGS = t.ArrayType(t.StringType(), False)
_PREDICTION = t.StructType(
    [
        t.StructField(contract.IMAGES, _STRINGS, False),
        t.StructField(contract.FLAGS, _STRINGS, False),
        t.StructField("seed", t.ArrayType(t.LongType(), False), False),
        t.StructField("error", t.StringType()),
    ]
)


def generate(
    df: DataFrame, model_uri: str, params: Mapping[str, Any] | None = None, images: str = "inline"
) -> DataFrame:
    """`df` with a struct `prediction`: `generated_images`, `nsfw_content_detected` and `seed`, or an `error`.

    `df` has a column `text_prompt` (or `prompt`); a column named like a parameter overrides `params`
    in its row, any other is carried along. `images` is "inline" (base64 in `generated_images`), or a
    folder or URI that every executor can write (file, hdfs, s3, gs, abfss): `generated_images` then
    holds paths below it, and images that are there already are not made again.

    Lazy, as Spark is. Raises `RequestError` for bad `params` and for a `df` without prompts; a bad row
    is an `error` in its own prediction.
    """
    params = dict(params or {})
    contract.parse([{contract.PROMPT: "a prompt"}], params, Settings())
    if not {contract.PROMPT, contract.PROMPT_ALIAS} & set(df.columns):
        raise InvalidRequest(f"the DataFrame has no column {contract.PROMPT}, only {', '.join(df.columns)}")
    if PREDICTION in df.columns:
        raise InvalidRequest(f"the DataFrame has a column {PREDICTION} already: rename it")
    place = images if images == "inline" or "://" in images else str(Path(images).absolute())
    score = partial(_score, mlflow.get_tracking_uri(), _absolute(model_uri), params, place)
    schema = t.StructType([*df.schema.fields, t.StructField(PREDICTION, _PREDICTION, False)])
    master = df.sparkSession.conf.get("spark.master", "")
    if master == "local" or (master or "").startswith("local["):
        # One process: its tasks would each hold a model, and it knows no resource profiles.
        return df.coalesce(1).mapInArrow(score, schema)
    return df.mapInArrow(score, schema, profile=_whole_executor(df))


def _absolute(model_uri: str) -> str:
    """`model_uri`; a folder of the driver's with its whole path, since an executor works elsewhere."""
    return str(Path(model_uri).resolve()) if Path(model_uri).exists() else model_uri


def _whole_executor(df: DataFrame) -> ResourceProfile:
    """A task takes all cores of an executor, so that an executor never holds two models."""
    cores = int(df.sparkSession.conf.get("spark.executor.cores", "1") or 1)
    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(cores)).build


def _score(
    tracking_uri: str, model_uri: str, params: dict[str, Any], images: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """What an executor does: `batches` with their predictions, a few rows at a time."""
    store = _Inline() if images == "inline" else ImageStore(images)
    scorer = bulk.Scorer(_model(tracking_uri, model_uri), store, params)
    kind = to_arrow_type(_PREDICTION)
    for batch in batches:
        read = batch.select([name for name in batch.schema.names if name in _READ])
        predictions = scorer.score_rows("", tables.of_arrow(read))
        for first in range(0, batch.num_rows, _ROWS_OUT):
            some = [_struct(prediction, store) for prediction in islice(predictions, _ROWS_OUT)]
            yield batch.slice(first, _ROWS_OUT).append_column(PREDICTION, pa.array(some, kind))


def _struct(prediction: bulk.Prediction, store: _Inline | ImageStore) -> dict[str, Any]:
    taken = map(store.take, prediction.images) if isinstance(store, _Inline) else prediction.images
    return {
        contract.IMAGES: list(taken),
        contract.FLAGS: list(prediction.nsfw_content_detected),
        "seed": list(prediction.seed),
        "error": prediction.error,
    }


@lru_cache(maxsize=1)
def _model(tracking_uri: str, model_uri: str) -> TextToImage:
    """The package at `model_uri`, loaded once in each of Spark's Python workers."""
    mlflow.set_tracking_uri(tracking_uri)
    return TextToImage.of_package(Path(mlflow.artifacts.download_artifacts(model_uri)), **bulk.SETTINGS)


class _Inline:
    """A store that hands each image on with its row."""

    def __init__(self) -> None:
        self._images: dict[str, bytes] = {}

    def flag_of(self, path: str) -> None:
        """Nothing is ever there already."""

    def write(self, path: str, encoded: bytes) -> None:
        """Keep an image until its row leaves."""
        self._images[path] = encoded

    def take(self, path: str) -> str:
        """The image, in base64."""
        return base64.b64encode(self._images.pop(path)).decode("ascii")
