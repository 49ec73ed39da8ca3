"""Stable Diffusion v1-4 as an MLflow model. Importing this loads neither torch nor mlflow."""

import os

__version__ = "0.1.0"
__all__ = ["__version__"]

# Read once, when torch is imported: how long its threads spin at a barrier before they sleep. By default so
# long that an image takes 20 times as long while another process wants a core; this costs little without one.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
