#!/usr/bin/env bash
# Builds the image, pushes it to ECR unless it is there already, and prints its URI. Arguments go on to `docker build`
# and make an image that needs a tag of its own: IMAGE_TAG=efa ./docker/push-image.sh --build-arg BASE_IMAGE=...
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/aws.sh

[[ $# == 0 || -n ${IMAGE_TAG:-} ]] || fail 'arguments make another image; set IMAGE_TAG to a tag of its own'
find_region
uri=$(docker/image-uri.sh)
registry=${uri%%/*} repository=sagemaker-tutorial tag=${uri##*:}

if message=$(aws ecr describe-images --repository-name "$repository" --image-ids "imageTag=$tag" 2>&1); then
  [[ $# == 0 ]] || fail "$uri is in ECR already, where it cannot be replaced; set IMAGE_TAG to another tag"
  echo 'in ECR already, nothing to do:' >&2
  echo "$uri"
  exit
fi
[[ $message == *ImageNotFoundException* || $message == *RepositoryNotFoundException* ]] || fail_as aws "$message"
command -v docker >/dev/null || fail 'docker is not installed; see https://docs.docker.com/engine/install/'
run docker version >/dev/null

if [[ $message == *RepositoryNotFoundException* ]]; then
  # Immutable, so that the image of a job, which its tag names, can never become another one.
  run aws ecr create-repository --repository-name "$repository" --image-tag-mutability IMMUTABLE \
    --image-scanning-configuration scanOnPush=true >/dev/null
fi
password=$(run aws ecr get-login-password)
printf %s "$password" | run docker login --username AWS --password-stdin "$registry" >/dev/null
trap 'docker logout "$registry" >/dev/null 2>&1 || :' EXIT

# SageMaker's machines are x86, and it refuses the image index that BuildKit makes to hold attestations.
[[ $(uname -m) == x86_64 ]] || set -- --platform linux/amd64 "$@"
BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker/build-image.sh "$@" >&2
docker tag sagemaker-tutorial "$uri"
run docker push "$uri" >&2
echo "$uri"
