"""Adapters at the rim, one for each framework that calls the model."""
