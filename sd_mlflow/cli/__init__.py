"""`sd-mlflow`: package, inspect, serve and try a Stable Diffusion model."""

from sd_mlflow.cli.app import app, main
from sd_mlflow.cli.drawing import batch, generate
from sd_mlflow.cli.packages import inspect, package, serve

__all__ = ["app", "main"]

# In the order in which `--help` lists them.
for command in (package, inspect, serve, generate, batch):
    app.command()(command)
