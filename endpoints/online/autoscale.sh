#!/usr/bin/env bash
# Scale a deployment with its load: autoscale.sh ENDPOINT DEPLOYMENT [MOST_INSTANCES]
# Needs AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP and AZUREML_WORKSPACE, and a login.
set -euo pipefail
endpoint=$1 deployment=$2 most=${3:-3}

workspace="/subscriptions/$AZURE_SUBSCRIPTION_ID/resourceGroups/$AZURE_RESOURCE_GROUP"
workspace+="/providers/Microsoft.MachineLearningServices/workspaces/$AZUREML_WORKSPACE"
target="$workspace/onlineEndpoints/$endpoint/deployments/$deployment"
name="autoscale-$endpoint-$deployment"

az monitor autoscale create --resource-group "$AZURE_RESOURCE_GROUP" --name "$name" \
  --resource "$target" --min-count 1 --max-count "$most" --count 1
# A GPU that is this busy for five minutes has callers waiting; a new instance needs some ten minutes
# to come up, so it is asked for early, and let go slowly.
az monitor autoscale rule create --resource-group "$AZURE_RESOURCE_GROUP" --autoscale-name "$name" \
  --condition "GpuUtilizationPercentage > 70 avg 5m" --scale out 1 --cooldown 15
az monitor autoscale rule create --resource-group "$AZURE_RESOURCE_GROUP" --autoscale-name "$name" \
  --condition "GpuUtilizationPercentage < 20 avg 30m" --scale in 1 --cooldown 30
