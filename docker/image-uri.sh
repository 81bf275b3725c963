#!/usr/bin/env bash
# Prints the URI of the image in ECR. Its tag is a checksum of the files that the image is built from.
# IMAGE_TAG replaces it, for images built with arguments; REGISTRY replaces ECR's host.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/aws.sh

registry=${REGISTRY:-}
if [[ -z $registry ]]; then
  find_region
  account=$(run aws sts get-caller-identity --query Account --output text)
  registry=$account.dkr.ecr.$AWS_REGION.amazonaws.com
  [[ $AWS_REGION != cn-* ]] || registry+=.cn
fi
checksum='import hashlib, sys
digests = [hashlib.sha256(open(name, "rb").read()).digest() for name in sys.argv[1:]]
print(hashlib.sha256(b"".join(digests)).hexdigest()[:12])'
files=(docker/Dockerfile docker/entrypoint.py docker/requirements/*.txt)
tag=${IMAGE_TAG:-$(python3 -c "$checksum" "${files[@]}")}
echo "$registry/sagemaker-tutorial:$tag"
