"""`sd-mlflow`: package, try and deploy a Stable Diffusion model."""

from sd_mlflow.cli.app import app, main
from sd_mlflow.cli.asking import invoke
from sd_mlflow.cli.bench import bench
from sd_mlflow.cli.cloud import delete, deploy_app, register, traffic
from sd_mlflow.cli.drawing import batch, generate
from sd_mlflow.cli.packages import inspect, package, serve

__all__ = ["app", "main"]

# In the order in which `--help` lists them.
for on_this_machine in (package, inspect, serve, generate, batch, bench):
    app.command()(on_this_machine)
for on_azure in (register, traffic, invoke, delete):
    app.command()(on_azure)
app.add_typer(deploy_app, name="deploy")
