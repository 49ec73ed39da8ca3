"""Spark, on a cluster of two real executors, one of which is killed at work."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.pyfunc
import pyspark
import pytest
from conftest import REPOSITORY
from pyspark.sql import DataFrame, Row, SparkSession

from sd_mlflow.errors import InvalidParameter, InvalidRequest
from sd_mlflow.scoring.spark import generate

os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}

FAST = {"num_inference_steps": 2, "scheduler": "DDIM"}
PROMPTS = [(number, f"a cat number {number}", None if number % 2 else number) for number in range(48)]


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    """Two workers of one core each, every one its own process."""
    builder = SparkSession.builder.master("local-cluster[2,1,1024]")
    for name, setting in {
        "spark.ui.enabled": "false",
        "spark.executorEnv.PYTHONPATH": str(REPOSITORY),
        "spark.log.level": "ERROR",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, setting)
    session = builder.getOrCreate()
    yield session
    session.stop()
    shutil.rmtree(Path(pyspark.__file__).with_name("work"), ignore_errors=True)


@pytest.fixture(scope="module")
def prompts(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(PROMPTS, "id long, text_prompt string, seed long").repartition(6, "id")


@pytest.fixture(scope="module")
def expected(emoji_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `sd-mlflow batch` makes of the same prompts, with as many threads as an executor has."""
    folder = tmp_path_factory.mktemp("spark")
    rows = [{"text_prompt": prompt, "seed": seed} for _, prompt, seed in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "sd_mlflow.cli", "batch", "prompts.jsonl", "--out", "out"]
    flags = ["--num-inference-steps", "2", "--scheduler", "DDIM", "--model", str(emoji_package)]
    subprocess.run([*command, *flags], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    return images(folder / "out")


def images(out: Path) -> dict[str, str]:
    """Every image below `out`, with its hash."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (out / "images").rglob("*.*")
    }


def executors() -> list[int]:
    """Process numbers of the cluster's executors."""
    commands = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(pid) for pid, command in commands.items() if b"CoarseGrainedExecutorBackend" in command]


def predictions(rows: list[Row]) -> dict[int, Row]:
    found = {row.id: row.prediction for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_killed_executor_costs_nothing(
    emoji_package: Path, prompts: DataFrame, expected: dict[str, str], tmp_path: Path
) -> None:
    """Every prompt once, under the same names and to the same bytes as on one machine."""
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(generate(prompts, str(emoji_package), FAST, str(tmp_path)).collect)
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob("images/*/*"))) < 12:
            assert not answer.done()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        victim, *others = executors()
        assert others
        os.kill(victim, signal.SIGKILL)
        found = predictions(answer.result(timeout=300))
    assert sorted(found) == [number for number, *_ in PROMPTS]
    assert all(prediction.error is None for prediction in found.values())
    assert images(tmp_path) == expected
    named = [path for prediction in found.values() for path in prediction.generated_images]
    assert sorted(named) == sorted(expected)
    assert all(found[number].seed == [seed] for number, _, seed in PROMPTS if seed is not None)


def test_images_inline_are_those_of_the_folder(
    emoji_package: Path, prompts: DataFrame, expected: dict[str, str]
) -> None:
    found = predictions(generate(prompts.where("id < 8"), str(emoji_package), FAST).collect())
    assert len(found) == 8
    for prediction in found.values():
        (image,) = prediction.generated_images
        assert hashlib.sha256(base64.b64decode(image)).hexdigest() in expected.values()
        assert prediction.nsfw_content_detected in (["True"], ["False"])


def test_a_bad_row_is_its_own_error(emoji_package: Path, spark: SparkSession, tmp_path: Path) -> None:
    rows = [(0, "a cat", 2), (1, " ", 2), (2, "a cat", 900), (3, None, 2), (4, "a cat", None), (5, "x" * 5000, 2)]
    df = spark.createDataFrame(rows, "id long, prompt string, num_inference_steps int")
    out = (tmp_path / "out").as_uri()
    found = predictions(generate(df.coalesce(1), str(emoji_package), FAST, out).collect())
    assert [number for number in range(6) if found[number].error is None] == [0, 4]
    assert found[0].generated_images == found[4].generated_images
    assert "num_inference_steps must be between 1 and 150, got 900" in found[2].error
    assert found[2].generated_images == []
    assert len(images(tmp_path / "out")) == 1


def test_what_cannot_be_is_said_before_the_job_runs(prompts: DataFrame) -> None:
    with pytest.raises(InvalidParameter, match="got 900"):
        generate(prompts, "model", {"num_inference_steps": 900})
    with pytest.raises(InvalidRequest, match="no column text_prompt, only id, seed"):
        generate(prompts.drop("text_prompt"), "model")
    with pytest.raises(InvalidRequest, match="a column prediction already"):
        generate(prompts.withColumnRenamed("id", "prediction"), "model")


def test_mlflow_s_own_spark_udf(emoji_package: Path, spark: SparkSession) -> None:
    """The package answers there too, one record a row; within the limits of a request."""
    kind = "struct<generated_images:array<string>,nsfw_content_detected:array<string>>"
    draw = mlflow.pyfunc.spark_udf(
        spark, str(emoji_package), result_type=kind, params=FAST | {"seed": 3, "orient": "records"}
    )
    df = spark.createDataFrame([("a cat",), ("a horse",)], "text_prompt string").coalesce(1)
    rows = df.withColumn("answer", draw("text_prompt")).collect()
    assert [len(row.answer.generated_images) for row in rows] == [1, 1]
    assert len({row.answer.generated_images[0] for row in rows}) == 2


def test_the_example_in_the_readme_runs(emoji_package: Path, tmp_path: Path) -> None:
    """On a local master, as a reader would try it first; with fewer steps."""
    (example,) = re.findall(r"```python\n(.*?generate\(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (tmp_path / "model").symlink_to(emoji_package)
    (tmp_path / "prompts.jsonl").write_text('{"text_prompt": "a cat"}\n{"text_prompt": " "}\n')
    code = example.replace('"num_inference_steps": 20', '"num_inference_steps": 2')
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    (made,) = images(tmp_path / "pictures")
    assert made in ran.stdout
    assert "must not be blank" in ran.stdout
