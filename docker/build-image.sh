#!/usr/bin/env bash
# Builds the image sagemaker-tutorial, or IMAGE_NAME. Arguments are passed to `docker build`.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/functions.sh

check_docker
# SageMaker hosting rejects OCI manifests, and for training nothing is documented, so the image gets Docker's manifest.
# By default, BuildKit writes an OCI manifest, and an index for attestations; and some builders of buildx do not load
# the image into Docker Engine.
build=(docker build)
! docker buildx version >/dev/null 2>&1 || build=(docker buildx build --output 'type=docker,oci-mediatypes=false')
BUILDX_NO_DEFAULT_ATTESTATIONS=1 "${build[@]}" --tag "${IMAGE_NAME:-sagemaker-tutorial}" --file docker/Dockerfile "$@" .
