#!/usr/bin/env bash
# Builds the image sagemaker-tutorial. Arguments go on to `docker build`.
set -euo pipefail
cd "$(dirname "$0")/.."

docker build --tag sagemaker-tutorial --file docker/Dockerfile "$@" .
