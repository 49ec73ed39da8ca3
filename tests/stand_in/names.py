"""What the stand-in's one subscription holds, and where it is reached."""

from __future__ import annotations

SUBSCRIPTION = "5d7a4c1e-0000-4000-8000-000000000001"
TENANT = "5d7a4c1e-0000-4000-8000-000000000002"
CLIENT = "5d7a4c1e-0000-4000-8000-000000000003"
WORKSPACE_ID = "5d7a4c1e-0000-4000-8000-000000000004"
RESOURCE_GROUP, WORKSPACE, REGISTRY, REGION = "rg-stand-in", "ws-stand-in", "registry-stand-in", "eastus"
MANAGEMENT = "management.azure.com"
API = f"{REGION}.api.azureml.ms"
INFERENCE = f"{REGION}.inference.ml.azure.com"

_GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}"
_PROVIDER = f"{_GROUP}/providers/Microsoft.MachineLearningServices"
WORKSPACE_ARM_ID = f"{_PROVIDER}/workspaces/{WORKSPACE}"
