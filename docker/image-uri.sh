#!/usr/bin/env bash
# Prints the URI of the image in ECR. Its tag is a checksum of the files from which the image is built.
# IMAGE_TAG overrides the tag, for an image that is built with arguments; REGISTRY overrides the host of the registry.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/functions.sh

registry=${REGISTRY:-}
if [[ -z $registry ]]; then
  set_region
  account=$(run aws sts get-caller-identity --query Account --output text)
  domain=amazonaws.com
  if [[ ! $AWS_REGION =~ ^(af|ap|ca|eu|il|me|mx|sa|us)-[a-z]+-[0-9]+$ ]]; then
    # A region of a different partition, such as China: botocore knows its domain.
    find_domain='import sys
from botocore.session import Session
endpoints = Session().get_component("endpoint_resolver")
print(endpoints.get_partition_dns_suffix(endpoints.get_partition_for_region(sys.argv[1])))'
    domain=$(python3 -c "$find_domain" "$AWS_REGION" 2>&1) || fail_as "AWS_REGION=$AWS_REGION" "${domain##*$'\n'}"
  fi
  registry=$account.dkr.ecr.$AWS_REGION.$domain
fi
checksum='import hashlib, sys
digests = [hashlib.sha256(open(name, "rb").read()).digest() for name in sys.argv[1:]]
print(hashlib.sha256(b"".join(digests)).hexdigest()[:12])'
files=(docker/Dockerfile docker/entrypoint.py docker/requirements/*.txt)
tag=${IMAGE_TAG:-$(python3 -c "$checksum" "${files[@]}")}
echo "$registry/sagemaker-tutorial:$tag"
