"""The script by which MLflow makes the model ("models from code"): copied into every package."""

from mlflow.models import set_model

from sd_mlflow.model import StableDiffusionModel, validate_rows_ourselves

validate_rows_ourselves()
set_model(StableDiffusionModel())
