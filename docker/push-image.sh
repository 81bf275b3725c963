#!/usr/bin/env bash
# Builds the image, pushes it to ECR unless it is there already, and prints its URI. Arguments go on to `docker build`
# and make an image that needs a tag of its own: IMAGE_TAG=mirror ./docker/push-image.sh --build-arg BASE_IMAGE=...
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/aws.sh

[[ $# == 0 || -n ${IMAGE_TAG:-} ]] || fail 'arguments make another image; set IMAGE_TAG to a tag of its own'
find_region
uri=$(docker/image-uri.sh)
registry=${uri%%/*} repository=sagemaker-tutorial tag=${uri##*:}
describe_image=(aws ecr describe-images --repository-name "$repository" --image-ids "imageTag=$tag"
  --query 'imageDetails[0].[imageManifestMediaType,imageDigest]' --output text)

# Fails unless the image's description in ECR names Docker's own kind of manifest.
check_manifest() {
  local media_type=${1%%$'\t'*}
  [[ $media_type == application/vnd.docker.distribution.manifest.v2+json ]] ||
    fail "$uri has a manifest of the type $media_type in ECR, which SageMaker may refuse;" \
      "install Docker's buildx plugin or update it, and set IMAGE_TAG to another tag"
}

if message=$("${describe_image[@]}" 2>&1); then
  check_manifest "$message"
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
# No earlier image has this name, should the build leave none in Docker Engine.
built=$repository:built-$$-$RANDOM
trap '{ docker logout "$registry"; docker rmi "$built"; } >/dev/null 2>&1 || :' EXIT

# SageMaker's machines are x86.
[[ $(uname -m) == x86_64 ]] || set -- --platform linux/amd64 "$@"
docker/build-image.sh --tag "$built" "$@" >&2
docker image inspect "$built" >/dev/null 2>&1 ||
  fail 'the build has left no image in Docker Engine; select its own builder with: docker buildx use default'
docker tag "$built" "$uri"
run docker push "$uri" >&2

arrived=$(run "${describe_image[@]}")
check_manifest "$arrived"
digest=${arrived##*$'\t'}
[[ $(docker image inspect --format '{{.RepoDigests}}' "$uri") == *"${uri%:*}@$digest"* ]] ||
  fail "$uri is another image in ECR, with the digest $digest; set IMAGE_TAG to another tag"
echo "$uri"
