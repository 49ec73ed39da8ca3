"""What Azure's own no-code scoring script needs of a package; it loads the package and no script of ours.

That script cannot be committed, so its steps are taken here one by one, each in our own words: it
reads signature and example, builds inference-schema's decorators from them, and serves predict.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import decode
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema
from inference_schema.schema_util import get_input_schema

from sd_mlflow.parameters import PARAMETERS

PROMPTS = ["a photograph of a horse", "a photograph of a cat"]
QUICK = {"num_inference_steps": 2, "seed": 3}

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(emoji_package: Path) -> Any:
    from mlflow.models import Model

    return Model.load(str(emoji_package))


@pytest.fixture(scope="module")
def example(emoji_package: Path, model: Any) -> pd.DataFrame:
    """The package's input example, read from its file as a DataFrame in pandas' split form."""
    saved = json.loads((emoji_package / model.saved_input_example_info["artifact_path"]).read_text())
    assert "columns" in saved
    return pd.read_json(io.StringIO(json.dumps(saved)), orient="split", dtype=False)


@pytest.fixture(scope="module")
def read(model: Any, example: pd.DataFrame) -> Run:
    """Arguments as inference-schema reads them from a body, by the schema of example and signature."""
    params = {param.name: sample_of(param) for param in model.signature.params}

    @input_schema("input_data", PandasParameterType(example, enforce_shape=False, orient="split"))
    @input_schema("params", StandardPythonParameterType(params), optional=True)
    def read(input_data: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return input_data, params

    return read


@pytest.fixture(scope="module")
def run(emoji_package: Path, read: Run) -> Iterator[Run]:
    """A run() that answers a body as the no-code script's does."""
    import mlflow.pyfunc
    from mlflow.pyfunc.scoring_server import _get_jsonable_obj

    model = mlflow.pyfunc.load_model(str(emoji_package))

    def run(**body: Any) -> Any:
        input_data, params = read(**body)
        assert isinstance(input_data, pd.DataFrame)
        return _get_jsonable_obj(model.predict(input_data, params=params), pandas_orient="records")

    yield run
    model.unwrap_python_model().text_to_image.close()


def sample_of(param: Any) -> Any:
    """A parameter's default, or a value of its type where it has none."""
    samples = {"boolean": True, "string": "a string", "integer": 42, "long": 42, "float": 0.5, "double": 0.5}
    return samples[param.dtype.name] if param.default is None else param.default


def test_the_signature_names_scalar_columns_and_promises_no_output(model: Any) -> None:
    from mlflow.types import ColSpec, DataType

    inputs = model.signature.inputs
    assert inputs.has_input_names()
    assert inputs.input_names() == ["text_prompt", "negative_prompt", "seed"]
    assert all(isinstance(column, ColSpec) and isinstance(column.type, DataType) for column in inputs)
    assert inputs.pandas_types()  # raises for what is not a scalar
    assert model.signature.outputs is None


def test_every_parameter_of_the_table_has_a_sample(model: Any) -> None:
    samples = {param.name: sample_of(param) for param in model.signature.params}
    assert samples.keys() == PARAMETERS.keys()
    assert json.loads(json.dumps(samples)) == samples


def test_the_example_is_a_dataframe_of_the_two_prompts_of_the_sample(model: Any, example: pd.DataFrame) -> None:
    assert model.saved_input_example_info["type"] == "dataframe"
    assert list(example.columns) == ["text_prompt"]
    assert [type(prompt) for prompt in example["text_prompt"]] == [str, str]


def test_the_swagger_is_made_from_example_and_samples(read: Run) -> None:
    properties = get_input_schema(read)["properties"]
    assert properties["input_data"]["format"] == "pandas.DataFrame:split"
    assert properties["params"]["properties"].keys() == PARAMETERS.keys()


@pytest.mark.parametrize("data", [[[prompt] for prompt in PROMPTS], PROMPTS], ids=["nested", "flat"])
def test_well_formed_input_data_is_one_record_that_is_json(run: Run, data: list[Any]) -> None:
    answer = run(input_data={"columns": ["text_prompt"], "data": data, "index": [0, 1]}, params=QUICK)
    (record,) = json.loads(json.dumps(answer))
    assert list(record) == ["generated_images", "nsfw_content_detected"]
    assert [decode(image).shape for image in record["generated_images"]] == [(128, 128, 3)] * 2
    assert {type(flag) for flag in record["nsfw_content_detected"]} == {str}


def test_params_at_the_top_are_honoured(run: Run) -> None:
    body = {"columns": ["text_prompt"], "data": PROMPTS, "index": [0, 1]}
    first, second = run(input_data=body, params=QUICK | {"return_metadata": True, "orient": "records"})
    assert (first["seed"], second["seed"]) == ([3], [4])
    assert first["num_inference_steps"] == [2]


def test_a_row_has_its_own_seed_and_negative_prompt(run: Run) -> None:
    columns = ["text_prompt", "seed", "negative_prompt"]
    body = {"columns": columns, "data": [[PROMPTS[0], 9, None], [PROMPTS[1], None, "a tree"]], "index": [0, 1]}
    (record,) = run(input_data=body, params=QUICK | {"return_metadata": True})
    assert record["seed"] == [9, 4]


@pytest.mark.parametrize(
    ("data", "params", "says"),
    [
        ([["a horse"]], {"num_inference_steps": 900}, "num_inference_steps must be between 1 and 150"),
        ([[None]], None, "row 0: text_prompt must be a string"),
        ([], None, "the request has no rows"),
    ],
    ids=["steps", "null", "empty"],
)
def test_what_the_script_lets_through_predict_refuses(run: Run, data: Any, params: Any, says: str) -> None:
    from mlflow.exceptions import MlflowException

    body = {"columns": ["text_prompt"], "data": data, "index": list(range(len(data)))}
    with pytest.raises(MlflowException, match=says):
        run(input_data=body, params=params)


@pytest.mark.parametrize("name", ["azureml-ai-monitoring", "azureml-inference-server-http", "mlflow"])
def test_conda_yaml_brings_what_the_servers_import(emoji_package: Path, name: str) -> None:
    conda = yaml.safe_load((emoji_package / "conda.yaml").read_text())
    (pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert any(requirement.startswith(f"{name}=") or requirement.startswith(f"{name}~=") for requirement in pip)
