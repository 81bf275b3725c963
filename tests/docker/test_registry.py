"""docker/push-image.sh with a real Docker Engine and registry; moto imitates the rest of ECR: `make test-docker`."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import bcrypt
import pytest
from fake_aws.toolkit import free_port
from runs.programs import ROOT, copy_project, executable
from runs.tutorial import block

REGISTRY = shutil.which("docker-registry")
DOCKER = shutil.which("docker")
NAME = "sagemaker-tutorial-test"  # leaves the image sagemaker-tutorial of this machine alone
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not REGISTRY, reason="there is no docker-registry, which Debian and Ubuntu package"),
]


def docker(*command: str, **environment: str) -> str:
    """Returns the output of a docker command, which must succeed."""
    env = os.environ | environment
    return subprocess.run([DOCKER, *command], check=True, capture_output=True, text=True, env=env).stdout.strip()


@pytest.fixture
def password(aws) -> str:
    token = aws.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    return base64.b64decode(token).decode().removeprefix("AWS:")


@pytest.fixture
def registry(tmp_path: Path, password: str) -> Iterator[str]:
    """Starts an empty registry and returns its host and port. It requires ECR's password."""
    host = f"127.0.0.1:{free_port()}"
    (tmp_path / "htpasswd").write_bytes(b"AWS:" + bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)) + b"\n")
    (tmp_path / "registry.yaml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: {host}}}\n"
        f"auth: {{htpasswd: {{realm: ECR, path: {tmp_path}/htpasswd}}}}\n"
    )
    with open(tmp_path / "registry.log", "w") as log:
        process = subprocess.Popen([REGISTRY, "serve", tmp_path / "registry.yaml"], stdout=log, stderr=log)
    while process.poll() is None:
        try:
            urlopen(f"http://{host}/v2/")
        except HTTPError as error:
            assert error.code == 401
            break
        except OSError:
            time.sleep(0.1)
    yield host
    process.terminate()
    process.wait()


@pytest.fixture
def push(tmp_path: Path, aws, registry: str) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Runs push-image.sh in a copy of the project with a small image, and records docker's command lines."""
    copy_project(tmp_path, "docker", ".dockerignore")
    for script in (tmp_path / "docker").glob("*.sh"):
        script.write_text(script.read_text().replace("sagemaker-tutorial", NAME))
    (tmp_path / "docker/Dockerfile").write_text(
        "FROM scratch\nARG WORD=\nENV WORD=${WORD}\nCOPY docker/requirements/others.txt .\n"
    )
    docker_for_ecr = f"{ROOT}/tests/support/fake_aws/docker_for_ecr.py"
    executable(tmp_path / "bin/docker", f'exec {sys.executable} {docker_for_ecr} "$@"')
    path = f"{tmp_path}/bin:{Path(sys.executable).parents[1]}/aws/bin:{os.environ['PATH']}"
    environment = aws.environment | {"PATH": path, "REGISTRY": registry, "DOCKER_CONFIG": str(tmp_path / "config")}
    environment |= {"DOCKER": DOCKER, "COMMANDS": str(tmp_path / "commands")}

    def push(*arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess:
        command = [tmp_path / block("./docker/push-image.sh\n").strip(), *arguments]
        env = environment | variables
        result = subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", timeout=300)
        assert result.returncode == code, result.stderr
        return result

    yield push
    for image in docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if image == f"{NAME}:latest" or image.startswith(f"{registry}/"):
            docker("rmi", image)


def pull(uri: str, password: str, config: Path) -> str:
    """Returns the ID of the image after removing it from this machine and pulling it from the registry."""
    docker("rmi", uri)
    environment = {"DOCKER_CONFIG": str(config)}
    login = [DOCKER, "login", "--username=AWS", "--password-stdin", uri.split("/")[0]]
    subprocess.run(login, check=True, input=password, text=True, env=os.environ | environment, capture_output=True)
    docker("pull", uri, **environment)
    return docker("images", "--quiet", "--no-trunc", uri)


def error_line(result: subprocess.CompletedProcess) -> str:
    """Returns the error, which must be the last line of stderr, after the output of build and push."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("push-image.sh: error: ")]
    assert result.stderr.endswith(f"{line}\n") and result.stdout == ""
    return line.removeprefix("push-image.sh: error: ")


def test_the_first_push_creates_a_repository_with_image_scans_and_immutable_tags(push, aws):
    push()
    (repository,) = aws.client("ecr").describe_repositories()["repositories"]
    assert repository["repositoryName"] == NAME
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert repository["imageTagMutability"] == "IMMUTABLE"


def test_the_pushed_image_can_be_pulled_with_the_printed_uri(push, registry, password, tmp_path):
    uri = push().stdout.strip()
    assert uri.startswith(f"{registry}/{NAME}:")
    built = docker("images", "--quiet", "--no-trunc", uri)
    assert pull(uri, password, tmp_path / "config") == built


def test_the_password_is_never_on_a_command_line_in_the_output_or_in_a_file(push, password, tmp_path):
    result = push()
    commands = (tmp_path / "commands").read_text()
    assert "login" in commands and "push" in commands
    assert password not in commands + result.stdout + result.stderr
    assert '"auth"' not in (tmp_path / "config/config.json").read_text()


def test_a_second_push_does_nothing(push, tmp_path):
    first = push()
    (tmp_path / "commands").unlink()
    second = push()
    assert second.stdout == first.stdout
    assert second.stderr == "already in ECR, nothing to do:\n"
    assert not (tmp_path / "commands").exists()


def test_an_image_built_with_arguments_is_pushed_with_image_tag(push, password, tmp_path):
    uri = push("--build-arg", "WORD=fast", IMAGE_TAG="fast").stdout.strip()
    assert uri.endswith(f"/{NAME}:fast")
    pull(uri, password, tmp_path / "config")
    assert "WORD=fast" in docker("image", "inspect", uri)


def test_a_tag_cannot_be_used_for_a_different_image(push):
    first = push()
    assert "set IMAGE_TAG to give it a tag of its own" in push("--build-arg", "WORD=fast", code=2).stderr
    tag = first.stdout.strip().split(":")[-1]
    line = push("--build-arg", "WORD=fast", IMAGE_TAG=tag, code=2).stderr
    assert line.count("\n") == 1 and "set IMAGE_TAG to a different tag" in line


def test_a_push_from_an_arm_machine_is_for_x86_and_keeps_the_image_of_local_mode(push, tmp_path):
    executable(tmp_path / "bin/uname", "echo arm64")
    subprocess.run([tmp_path / "docker/build-image.sh", "--build-arg=WORD=local"], check=True, capture_output=True)
    local = docker("images", "--quiet", f"{NAME}:latest")
    uri = push().stdout.strip()
    assert " --platform linux/amd64 ." in (tmp_path / "commands").read_text()
    assert docker("image", "inspect", "--format", "{{.Architecture}}", uri) == "amd64"
    assert docker("images", "--quiet", f"{NAME}:latest") == local != docker("images", "--quiet", uri)


def test_amazons_credential_helper_replaces_the_login(push, password, tmp_path):
    credentials = json.dumps({"Username": "AWS", "Secret": password})
    helper = f"[ $1 = get ] && echo '{credentials}' && exit\necho not implemented\nexit 1"
    executable(tmp_path / "bin/docker-credential-ecr-login", helper)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text('{"credsStore": "ecr-login"}')
    uri = push().stdout.strip()
    assert docker("images", "--quiet", uri)


def test_an_existing_repository_is_not_changed(push, aws):
    aws.client("ecr").create_repository(repositoryName=NAME)
    push()
    (repository,) = aws.client("ecr").describe_repositories()["repositories"]
    assert repository["imageTagMutability"] == "MUTABLE"


def test_the_image_in_ecr_has_dockers_manifest_and_the_pushed_digest(push, aws):
    uri = push().stdout.strip()
    (image,) = aws.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]
    assert image["imageManifestMediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    pushed = docker("image", "inspect", "--format", '{{join .RepoDigests " "}}', uri).split()
    assert f"{uri.rpartition(':')[0]}@{image['imageDigest']}" in pushed


def test_the_laptops_policy_pushes(push, aws):
    person, _ = aws.set_up_as_administrator()
    keys = {name: person[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    with aws.enforce_policies():
        uri = push(**keys).stdout.strip()
    (image,) = aws.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]
    assert image["imageTags"] == [uri.rpartition(":")[2]]


@pytest.mark.parametrize(("engine", "kind"), [("oci", "manifest"), ("index", "index")])
def test_a_manifest_other_than_dockers_is_an_error_in_this_push_and_the_next(push, engine, kind):
    line = error_line(push(code=2, ENGINE=engine))
    assert f"has a manifest of type application/vnd.oci.image.{kind}.v1+json in ECR" in line
    assert line.endswith("install or update Docker's buildx plugin, and set IMAGE_TAG to a different tag")
    assert push(code=2).stderr == f"push-image.sh: error: {line}\n"
    push(IMAGE_TAG="different")


def test_an_image_that_somebody_else_pushed_with_the_same_tag_is_an_error(push):
    line = error_line(push(code=2, ENGINE="overtaken"))
    assert "is a different image in ECR, with digest sha256:" in line
    assert line.endswith("; set IMAGE_TAG to a different tag")


def test_a_build_that_leaves_no_image_does_not_push_an_older_one(push, tmp_path):
    push()
    (tmp_path / "docker/requirements/others.txt").write_text("changed")
    line = error_line(push(code=2, ENGINE="no-image"))
    assert line.startswith("the builder loaded no image into Docker Engine; ")
    assert (tmp_path / "commands").read_text().count("push ") == 1


def test_buildx_loads_an_image_with_dockers_manifest_and_without_attestations(push, tmp_path):
    push(ENGINE="buildx")
    commands = (tmp_path / "commands").read_text().splitlines()
    (build,) = [command for command in commands if "--file" in command]
    assert build.startswith("buildx build --output type=docker,oci-mediatypes=false --tag ")


def test_only_the_pushed_image_is_left_in_the_engine(push):
    uri = push().stdout.strip()
    names = docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert [name for name in names if NAME in name] == [uri]


def test_without_docker_engine_no_repository_is_created(push, aws):
    line = push(DOCKER_HOST="tcp://127.0.0.1:1", code=2).stderr
    assert line.startswith("push-image.sh: error: docker: Cannot connect to the Docker daemon")
    assert line.count("\n") == 1 and "start Docker" in line
    assert aws.client("ecr").describe_repositories()["repositories"] == []


def test_an_unreachable_registry_is_reported_in_one_line(push):
    line = push(REGISTRY="127.0.0.1:1", code=2).stderr
    assert line.startswith("push-image.sh: error: docker: ") and line.count("\n") == 1
    assert "127.0.0.1:1" in line
