#!/usr/bin/env bash
# Files of prompts to images on a batch endpoint: text-to-image-batch-endpoint.sh [--delete]
#
#   az login && az extension add --name ml
#   export AZURE_SUBSCRIPTION_ID=... AZURE_RESOURCE_GROUP=... AZUREML_WORKSPACE=...
#   ENDPOINT=my-pictures PACKAGE=model endpoints/text-to-image-batch-endpoint.sh
#
# Run again, it makes what is missing, brings the deployment to what its file says, and starts another job. A
# registered version never changes: register a new package with MODEL_VERSION=2. DEPLOYMENT=green puts a
# second deployment beside the first, and makes it the default.
set -euo pipefail

subscription=${AZURE_SUBSCRIPTION_ID:?set it to the id of your subscription}
resource_group=${AZURE_RESOURCE_GROUP:?set it to the name of your resource group}
workspace=${AZUREML_WORKSPACE:?set it to the name of your workspace}
endpoint=${ENDPOINT:?choose a name for the endpoint, unique in its Azure region}
out=${OUT:-pictures}

model=stable-diffusion-v1-4 model_version=${MODEL_VERSION:-1}
environment=sd-mlflow-gpu
compute=gpu-cluster
deployment=${DEPLOYMENT:-blue}
repository=$(cd "$(dirname "$0")/.." && pwd)

ml() {
  az ml "$@" --subscription "$subscription" --resource-group "$resource_group" --workspace-name "$workspace"
}

found() {
  ml "$1" show "${@:2}" --output none 2>/dev/null
}

case ${1:-} in
  "") ;;
  --delete)
    ml batch-endpoint delete --name "$endpoint" --yes
    echo "Deleted $endpoint; the model, the environment and $compute stay, which costs nothing while idle."
    exit
    ;;
  *)
    echo "usage: $0 [--delete]" >&2
    exit 2
    ;;
esac

: "${PACKAGE:?set it to a folder that sd-mlflow package made}"
package=$(cd "$PACKAGE" && pwd) # az takes a relative path from where the file is

echo "Environment $environment"
found environment --name "$environment" --label latest ||
  ml environment create --file "$repository/registry/environments/$environment/spec.yaml" --output none

echo "Model $model, version $model_version"
found model --name "$model" --version "$model_version" ||
  ml model create --file "$repository/registry/models/$model/spec.yaml" \
    --version "$model_version" --path "$package" --output none

echo "Compute $compute"
found compute --name "$compute" ||
  ml compute create --file "$repository/endpoints/batch/compute.yml" --output none

echo "Endpoint $endpoint"
found batch-endpoint --name "$endpoint" ||
  ml batch-endpoint create --file "$repository/endpoints/batch/endpoint.yml" --name "$endpoint" --output none

echo "Deployment $deployment"
# Unlike that of an online deployment, this create overwrites.
ml batch-deployment create --file "$repository/endpoints/batch/deployment.yml" \
  --name "$deployment" --endpoint-name "$endpoint" --set-default --output none

prompts=${PROMPTS:-$out/prompts}
if [[ -z ${PROMPTS:-} ]]; then
  mkdir -p "$prompts"
  printf '%s\n' text_prompt,seed,num_inference_steps \
    "a photograph of an astronaut riding a horse,1,20" \
    "a photograph of a cat riding a horse,2,20" >"$prompts/riders.csv"
  printf '%s\n' text_prompt,seed,num_inference_steps \
    "a photograph of a fox in the snow,3,20" >"$prompts/animals.csv"
  printf '%s\n' text_prompt,negative_prompt,seed,num_inference_steps \
    "a photograph of a boat at sunset,rain,4,20" >"$prompts/scenes.csv"
fi

echo "Job over $prompts"
job=$(ml batch-endpoint invoke --name "$endpoint" --input-type uri_folder --input "$prompts" \
  --query name --output tsv)
ml job stream --name "$job"
ml job download --name "$job" --output-name score --download-path "$out"
find "$out" -name predictions.jsonl -o -path "*/images/*.png"
