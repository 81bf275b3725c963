#!/usr/bin/env bash
# Uploads .cache/cifar-10-python.tar.gz to a folder in S3, unless it is already there: ./upload-cifar-10.sh S3_URI
# A missing archive is downloaded first, from CIFAR10_URL. Set CIFAR10_MD5 to the checksum of your own archive.
set -euo pipefail
cd "$(dirname "$0")"
. docker/functions.sh

name=cifar-10-python.tar.gz
archive=.cache/$name
url=${CIFAR10_URL:-https://www.cs.toronto.edu/~kriz/$name}
md5=${CIFAR10_MD5:-c58f30108f718f92721af3b95e74349a}
[[ $# == 1 && $1 =~ ^s3://([a-z0-9][a-z0-9.-]+)(/.*)?$ ]] ||
  fail "expected ./upload-cifar-10.sh s3://<my-bucket>/<folder>, got '$*'; is S3_PATH set?"
bucket=${BASH_REMATCH[1]}
folder=$1
while [[ $folder == */ ]]; do folder=${folder%/}; done
key=${folder#"s3://$bucket"}/$name
key=${key#/}

set_region
region=$(run aws s3api get-bucket-location --bucket "$bucket" --query LocationConstraint --output text)
case $region in None) region=us-east-1 ;; EU) region=eu-west-1 ;; esac
[[ $region == "$AWS_REGION" ]] ||
  fail "$bucket is in $region, but SageMaker reads only buckets in its own region, $AWS_REGION; set AWS_REGION=$region"

file=$archive
source=$archive
remedy='delete it to download it again'
if [[ ! -e $archive ]]; then
  command -v wget >/dev/null || fail "wget is not installed; install it, or put the archive into .cache yourself"
  file=$archive.$$
  source=$url
  remedy='the download was discarded: try again later'
  trap 'rm -f "$file"' EXIT
  mkdir -p .cache
  progress=--progress=bar  # the only one that both versions of wget have
  [[ -t 2 ]] || progress=--quiet
  wget "$progress" --tries=3 --timeout=60 --output-document="$file" "$url" ||
    fail "could not download $url (wget: exit code $?); try again later, or put the archive into .cache yourself"
fi
actual=$(python3 -c 'import hashlib, sys; print(hashlib.md5(open(sys.argv[1], "rb").read()).hexdigest())' "$file")
[[ $actual == "$md5" ]] ||
  fail "$source has MD5 $actual, expected $md5; $remedy, or, if it is your own archive, set CIFAR10_MD5=$actual"
[[ $file == "$archive" ]] || mv "$file" "$archive"

if uploaded=$(aws s3api head-object --bucket "$bucket" --key "$key" --query Metadata.md5 --output text 2>&1); then
  [[ $uploaded != "$md5" ]] || { echo "$name is already in $folder" && exit; }
elif [[ $uploaded != *"(404)"* ]]; then
  fail_as aws "$uploaded"
fi
set --
[[ -t 2 ]] || set -- --only-show-errors
run aws s3 cp "$archive" "s3://$bucket/$key" --metadata "md5=$md5" "$@" >&2
echo "uploaded $name to $folder"
