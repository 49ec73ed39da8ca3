"""Stable Diffusion v1-4 as an MLflow model. Importing this loads neither torch nor mlflow."""

__version__ = "0.1.0"
__all__ = ["__version__"]
