#!/usr/bin/env bash
# Text to image on a managed online endpoint: text-to-image-online-endpoint.sh [--delete]
#
#   az login && az extension add --name ml
#   export AZURE_SUBSCRIPTION_ID=... AZURE_RESOURCE_GROUP=... AZUREML_WORKSPACE=...
#   ENDPOINT=my-pictures PACKAGE=model endpoints/text-to-image-online-endpoint.sh
#
# Run again, it makes what is missing, brings the deployment to what its file says, and asks again. A
# registered version never changes: register a new package with MODEL_VERSION=2. DEPLOYMENT=green puts a
# second deployment beside the first, which keeps the traffic until the new one is ready.
set -euo pipefail

subscription=${AZURE_SUBSCRIPTION_ID:?set it to the id of your subscription}
resource_group=${AZURE_RESOURCE_GROUP:?set it to the name of your resource group}
workspace=${AZUREML_WORKSPACE:?set it to the name of your workspace}
endpoint=${ENDPOINT:?choose a name for the endpoint, unique in its Azure region}
out=${OUT:-pictures}

model=stable-diffusion-v1-4 model_version=${MODEL_VERSION:-1}
environment=sd-mlflow-gpu
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
    ml online-endpoint delete --name "$endpoint" --yes
    echo "Deleted $endpoint; the model and the environment stay."
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

echo "Endpoint $endpoint"
found online-endpoint --name "$endpoint" ||
  ml online-endpoint create --file "$repository/endpoints/online/endpoint.yml" --name "$endpoint" --output none

echo "Deployment $deployment: the first time takes some ten minutes"
verb=create
found online-deployment --name "$deployment" --endpoint-name "$endpoint" && verb=update
ml online-deployment "$verb" --file "$repository/endpoints/online/deployment.yml" \
  --name "$deployment" --endpoint-name "$endpoint" --output none
# Not --all-traffic above: a deployment that failed the first time would be left without any.
ml online-endpoint update --name "$endpoint" --traffic "$deployment=100" --output none

echo "Asking with the sample"
mkdir -p "$out"
ml online-endpoint invoke --name "$endpoint" \
  --request-file "$repository/endpoints/requests/sample-request.json" --output tsv >"$out/response.json"
python3 - "$out" <<'PYTHON'
import base64, json, pathlib, sys

out = pathlib.Path(sys.argv[1])
(record,) = json.loads((out / "response.json").read_text())
for number, (image, flag) in enumerate(zip(record["generated_images"], record["nsfw_content_detected"]), start=1):
    file = out / f"{number}.png"
    file.write_bytes(base64.b64decode(image))
    print(f"{file}  nsfw_content_detected {flag}")
PYTHON
