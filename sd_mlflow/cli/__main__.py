"""`python -m sd_mlflow.cli`."""

from sd_mlflow.cli import main

main()
