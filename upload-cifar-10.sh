#!/usr/bin/env bash
# Uploads .cache/cifar-10-python.tar.gz to a folder on S3, unless it is there already: ./upload-cifar-10.sh S3_URI
# It is downloaded first if it is missing, from CIFAR10_URL. CIFAR10_MD5 is the checksum of an archive of your own.
set -euo pipefail
cd "$(dirname "$0")"
. docker/aws.sh

name=cifar-10-python.tar.gz
archive=.cache/$name
url=${CIFAR10_URL:-https://www.cs.toronto.edu/~kriz/$name}
md5=${CIFAR10_MD5:-c58f30108f718f92721af3b95e74349a}
[[ $# == 1 && $1 =~ ^s3://([a-z0-9][a-z0-9.-]+)(/.*)?$ ]] ||
  fail "usage: ./upload-cifar-10.sh s3://<my-bucket>/<folder>, not '$*'; is S3_PATH set?"
bucket=${BASH_REMATCH[1]} folder=$1
while [[ $folder == */ ]]; do folder=${folder%/}; done
key=${folder#"s3://$bucket"}/$name
key=${key#/}

find_region
region=$(run aws s3api get-bucket-location --bucket "$bucket" --query LocationConstraint --output text)
case $region in None) region=us-east-1 ;; EU) region=eu-west-1 ;; esac
[[ $region == "$AWS_REGION" ]] ||
  fail "$bucket is in $region, and SageMaker reads only from its own region, here $AWS_REGION; set AWS_REGION=$region"

file=$archive mend='delete it to download it again'
if [[ ! -e $archive ]]; then
  command -v wget >/dev/null || fail "wget is not installed; install it, or put the archive into .cache yourself"
  file=$archive.$$ mend='it was not kept, try again later'
  trap 'rm -f "$file"' EXIT
  mkdir -p .cache
  progress=--show-progress
  [[ -t 2 ]] || progress=--no-verbose
  wget --quiet "$progress" --tries=3 --timeout=60 --output-document="$file" "$url" ||
    fail "wget cannot get $url (exit code $?); put the archive into .cache yourself"
fi
actual=$(python3 -c 'import hashlib, sys; print(hashlib.md5(open(sys.argv[1], "rb").read()).hexdigest())' "$file")
[[ $actual == "$md5" ]] ||
  fail "$archive has MD5 $actual, not $md5; $mend, or, if it is your own, accept it with CIFAR10_MD5=$actual"
[[ $file == "$archive" ]] || mv "$file" "$archive"

if there=$(aws s3api head-object --bucket "$bucket" --key "$key" --query Metadata.md5 --output text 2>&1); then
  [[ $there != "$md5" ]] || { echo "$name is in $folder already" && exit; }
elif [[ $there != *"(404)"* ]]; then
  fail_as aws "$there"
fi
set --
[[ -t 2 ]] || set -- --only-show-errors
run aws s3 cp "$archive" "s3://$bucket/$key" --metadata "md5=$md5" "$@" >&2
echo "uploaded $name to $folder"
