"""`sd-mlflow bench`: our configurations against named peers, in turn, in one run."""
