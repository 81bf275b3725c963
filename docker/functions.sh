# shellcheck shell=bash
# Functions of the scripts: one-line errors with advice, the AWS region, and whether Docker can be used.

# Prints its arguments as one line on stderr, and exits with code 2.
fail() {
  printf '%s: error: %s\n' "${0##*/}" "$(printf %s "$*" | tr -s '[:space:]' ' ')" >&2
  exit 2
}

# Fails with the output of a command, and with advice if the error is a common one.
fail_as() {
  local advice=
  case $2 in
    *"Docker daemon"* | *"docker API"*) advice='; start Docker, or add your user to the docker group' ;;
    *xpired*) advice='; sign in to AWS again' ;;
    *InvalidClientTokenId* | *SignatureDoesNotMatch* | *UnrecognizedClient*) advice='; AWS rejected your credentials; check them with aws configure list' ;;
    *AccessDenied* | *"(403)"* | *denied:*) advice='; check your permissions; docker/policies/*.json allow only certain folders of your bucket' ;;
    *"No module named"*) advice='; activate the virtual environment' ;;
    *NoSuchBucket*) advice='; create the bucket with aws s3 mb, or correct its name' ;;
  esac
  fail "$1: $2$advice"
}

# Runs a command. Its stderr is shown only if it fails.
run() {
  local message
  { message=$("$@" 2>&1 >&3); } 3>&1 || fail_as "$1" "$message"
}

# Sets AWS_REGION and AWS_DEFAULT_REGION, as version 1 of the AWS CLI reads only the latter.
set_region() {
  command -v aws >/dev/null ||
    fail 'aws is not installed; see https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html'
  local region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
  if [[ -z $region ]]; then
    region=$(aws configure get region 2>&1) || fail "${region:-no AWS region is configured; set AWS_REGION, or run aws configure}"
  fi
  export AWS_REGION=$region AWS_DEFAULT_REGION=$region
}

# Fails unless there is a Docker Engine that can be used.
check_docker() {
  command -v docker >/dev/null || fail 'docker is not installed; see https://docs.docker.com/engine/install/'
  local version
  version=$(docker --version 2>/dev/null; docker buildx version 2>/dev/null) || :
  [[ $version != *podman* && $version != *buildah* ]] ||
    fail 'docker is Podman on this machine, which is not supported; see https://docs.docker.com/engine/install/'
  run docker version >/dev/null
}
