"""`sd-mlflow`: package, try and deploy a Stable Diffusion model."""

from sd_mlflow.cli.app import app, main
from sd_mlflow.cli.asking import invoke
from sd_mlflow.cli.cloud import delete, deploy_app, register, traffic
from sd_mlflow.cli.drawing import batch, generate
from sd_mlflow.cli.packages import inspect, package, serve

__all__ = ["app", "main"]

# In the order in which `--help` lists them.
for command in (package, inspect, serve, generate, batch, register):
    app.command()(command)
app.add_typer(deploy_app, name="deploy")
for command in (traffic, invoke, delete):
    app.command()(command)
