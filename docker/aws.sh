# shellcheck shell=bash
# For the scripts that call AWS: errors in one line that says what to do, and the region.

fail() {
  printf '%s: error: %s\n' "${0##*/}" "$(printf %s "$*" | tr -s '[:space:]' ' ')" >&2
  exit 2
}

# Fails with what a command has said, and what to do about it.
fail_as() {
  local hint=
  case $2 in
    *"Docker daemon"* | *"docker API"*) hint='; start Docker, or get the right to use it' ;;
    *xpired*) hint='; sign in to AWS again' ;;
    *InvalidClientTokenId* | *SignatureDoesNotMatch*) hint='; AWS does not know your credentials' ;;
    *AccessDenied* | *"(403)"* | *denied:*) hint='; docker/policies/laptop.json has the permissions that you need' ;;
    *NoSuchBucket*) hint='; create the bucket with aws s3 mb, or correct its name' ;;
  esac
  fail "$1: $2$hint"
}

# Runs a command and shows what it says on stderr only if it fails.
run() {
  local message
  { message=$("$@" 2>&1 >&3); } 3>&1 || fail_as "$1" "$message"
}

# Sets AWS_REGION and AWS_DEFAULT_REGION, as not every version of `aws` reads both.
find_region() {
  command -v aws >/dev/null ||
    fail 'aws is not installed; see https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html'
  local region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
  if [[ -z $region ]]; then
    region=$(aws configure get region 2>&1) || fail "${region:-no region; set AWS_REGION, or run aws configure}"
  fi
  export AWS_REGION=$region AWS_DEFAULT_REGION=$region
}
