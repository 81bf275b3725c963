#!/usr/bin/env bash
# Builds the image sagemaker-tutorial. Arguments go on to `docker build`.
set -euo pipefail
cd "$(dirname "$0")/.."

# SageMaker's hosting refuses OCI's manifests, and for training nothing is documented, so the image gets Docker's own.
# BuildKit makes OCI's unless told otherwise, and an index to hold attestations; and not every builder of buildx would
# give the image to Docker Engine.
build=(docker build)
! docker buildx version >/dev/null 2>&1 || build=(docker buildx build --output 'type=docker,oci-mediatypes=false')
BUILDX_NO_DEFAULT_ATTESTATIONS=1 "${build[@]}" --tag sagemaker-tutorial --file docker/Dockerfile "$@" .
