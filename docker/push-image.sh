#!/usr/bin/env bash
# Builds the image, pushes it to ECR unless it is already there, and prints its URI. Arguments are passed to
# `docker build`; they build a different image, which needs its own tag:
#   IMAGE_TAG=mirror ./docker/push-image.sh --build-arg BASE_IMAGE=...
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/functions.sh

[[ $# == 0 || -n ${IMAGE_TAG:-} ]] || fail 'build arguments produce a different image; set IMAGE_TAG to give it a tag of its own'
account=
if [[ ${REGISTRY:-} =~ ^([0-9]{12})\.dkr[.-]ecr(-fips)?\.([a-z0-9-]+)\. ]]; then
  account=${BASH_REMATCH[1]}
  export AWS_REGION=${BASH_REMATCH[3]}
fi
set_region
uri=$(docker/image-uri.sh)
registry=${uri%%/*}
repository=sagemaker-tutorial
tag=${uri##*:}
describe_image=(aws ecr describe-images --repository-name "$repository" --image-ids "imageTag=$tag"
  --query 'imageDetails[0].[imageManifestMediaType,imageDigest]' --output text)
[[ -z $account ]] || describe_image+=(--registry-id "$account")

# Fails unless the image in ECR, described by the argument, has Docker's manifest.
check_manifest() {
  local media_type=${1%%$'\t'*}
  [[ $media_type == application/vnd.docker.distribution.manifest.v2+json ]] ||
    fail "$uri has a manifest of type $media_type in ECR, which SageMaker may reject;" \
      "install or update Docker's buildx plugin, and set IMAGE_TAG to a different tag"
}

if message=$("${describe_image[@]}" 2>&1); then
  check_manifest "$message"
  [[ $# == 0 ]] || fail "$uri is already in ECR, where tags are immutable; set IMAGE_TAG to a different tag"
  echo 'already in ECR, nothing to do:' >&2
  echo "$uri"
  exit
fi
[[ $message == *ImageNotFoundException* || $message == *RepositoryNotFoundException* ]] || fail_as aws "$message"
if [[ -n $account && $message == *RepositoryNotFoundException* ]]; then
  own_account=$(run aws sts get-caller-identity --query Account --output text)
  [[ $account == "$own_account" ]] ||
    fail "REGISTRY=$registry has no repository $repository, and account $own_account cannot create one in $account;" \
      "ask the owner of $account to create it and to let you push"
fi
check_docker

if [[ $message == *RepositoryNotFoundException* ]]; then
  # Immutable, so that the tag that a job names always means the same image.
  run aws ecr create-repository --repository-name "$repository" --image-tag-mutability IMMUTABLE \
    --image-scanning-configuration scanOnPush=true >/dev/null
fi
password=$(run aws ecr get-login-password)
# Amazon's credential helper stores no passwords, and needs none.
message=$(printf %s "$password" | docker login --username AWS --password-stdin "$registry" 2>&1) ||
  [[ $message == *'not implemented'* ]] || fail_as docker "$message"
# A new name, so that no earlier image is pushed if the build leaves none in Docker Engine. And the image of local mode
# keeps its own: it is for the processor of this machine, which may not be x86, as SageMaker's are.
built=$repository:built-$$-$RANDOM
trap '{ docker logout "$registry"; docker rmi "$built"; } >/dev/null 2>&1 || :' EXIT
[[ $(uname -m) == x86_64 ]] || set -- --platform linux/amd64 "$@"
IMAGE_NAME=$built docker/build-image.sh "$@" >&2
docker image inspect "$built" >/dev/null 2>&1 ||
  fail 'the builder loaded no image into Docker Engine; select the default builder with: docker buildx use default'
docker tag "$built" "$uri"
run docker push "$uri" >&2

pushed=$(run "${describe_image[@]}")
check_manifest "$pushed"
digest=${pushed##*$'\t'}
[[ $(docker image inspect --format '{{.RepoDigests}}' "$uri") == *"${uri%:*}@$digest"* ]] ||
  fail "$uri is a different image in ECR, with digest $digest; set IMAGE_TAG to a different tag"
echo "$uri"
