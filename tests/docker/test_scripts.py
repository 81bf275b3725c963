"""The scripts that call AWS: the URI of the image, what needs no Docker of its push, and one-line errors of all."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from fake_aws.aws import ACCOUNT, DOCKER, REGION, Endpoint, filled_in
from moto.ecr.models import ecr_backends
from runs.programs import ROOT, copy_project
from runs.scripts import BUILD, FOLDER, PUSH, UPLOAD, URI

pytestmark = pytest.mark.slow  # they start the AWS CLI several times
OTHER_ACCOUNT = "222222222222"
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
NO_REGION = {"AWS_DEFAULT_REGION": "", "AWS_REGION": ""}
INSTALL_DOCKER = "https://docs.docker.com/engine/install/"


@pytest.fixture
def person_without(aws) -> Iterator[Callable[[str], dict[str, str]]]:
    """Returns the environment of a user with the laptop's policy except one action, and enforces policies."""
    with contextlib.ExitStack() as stack:

        def create(action: str) -> dict[str, str]:
            policy = json.loads(filled_in((ROOT / "docker/policies/laptop.json").read_text()))
            for statement in policy["Statement"]:
                if action in statement["Action"]:
                    statement["Action"] = [allowed for allowed in statement["Action"] if allowed != action]
            environment = aws.person("person", json.dumps(policy))
            stack.enter_context(aws.enforce_policies())
            return environment

        yield create


@pytest.mark.parametrize(
    ("variables", "domain"),
    [
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1.amazonaws.com"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2.amazonaws.com"),
        ({"AWS_DEFAULT_REGION": ""}, "eu-west-3.amazonaws.com"),
        ({"AWS_DEFAULT_REGION": "", "AWS_PROFILE": "north"}, "eu-north-1.amazonaws.com"),
        ({"AWS_REGION": "cn-north-1"}, "cn-north-1.amazonaws.com.cn"),
        ({"AWS_REGION": "us-gov-west-1"}, "us-gov-west-1.amazonaws.com"),
        ({"AWS_REGION": "eusc-de-east-1"}, "eusc-de-east-1.amazonaws.eu"),
        ({"AWS_REGION": "us-iso-east-1"}, "us-iso-east-1.c2s.ic.gov"),
    ],
)
def test_the_registry_is_in_the_region_of_the_environment_or_profile(project, tmp_path, variables, domain):
    profiles = tmp_path / "aws-config"
    profiles.write_text("[default]\nregion = eu-west-3\n[profile north]\nregion = eu-north-1\n")
    registry = project.run(URI, AWS_CONFIG_FILE=str(profiles), **variables).split("/")[0]
    assert registry == f"{ACCOUNT}.dkr.ecr.{domain}"


def test_only_regions_of_other_partitions_need_botocore(project):
    # Without site-packages: an interpreter of its own that knows no virtual environment.
    path = project.path_with("python3", f'exec {sys._base_executable} -S "$@"')
    assert project.run(URI, PATH=path, AWS_REGION="mx-central-1").split("/")[0].endswith(".mx-central-1.amazonaws.com")
    line = project.error_line(URI, PATH=path, AWS_REGION="cn-north-1")
    reason = "ModuleNotFoundError: No module named 'botocore'"
    assert line == f"AWS_REGION=cn-north-1: {reason}; activate the virtual environment"


def test_an_unknown_region_is_refused(project):
    assert "Unknown region: 'frankfurt'" in project.error_line(URI, AWS_REGION="frankfurt")


def test_the_tag_changes_with_each_file_of_the_image_and_with_nothing_else(project):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line.removeprefix("!") for line in lines if line.startswith("!")]
    files = [path for pattern in ("docker/Dockerfile", *patterns) for path in ROOT.glob(pattern)]
    names = [path.relative_to(ROOT) for path in files]
    assert len(names) == 6
    tags = [project.run(URI, REGISTRY="r")]
    assert tags[0].startswith("r/sagemaker-tutorial:") and len(tags[0].split(":")[1]) == 12
    (project.folder / BUILD).write_text("")
    (project.folder / "docker/Dockerfile").touch()
    project.folder = project.folder.rename(project.folder.with_name("renamed"))
    assert project.run(URI, REGISTRY="r") == tags[0]
    for name in names:
        with open(project.folder / name, "a") as file:
            file.write("\n")
        tags.append(project.run(URI, REGISTRY="r"))
    assert len(set(tags)) == 7


def test_registry_and_tag_can_be_set_without_aws(project):
    path = project.path_without("aws")
    assert project.run(URI, PATH=path, REGISTRY="127.0.0.1:5000", IMAGE_TAG="mine") == (
        "127.0.0.1:5000/sagemaker-tutorial:mine"
    )


@pytest.mark.parametrize("command", [(URI,), (PUSH,), (UPLOAD, FOLDER)], ids=lambda command: command[0])
class TestEveryScriptReportsInOneLineThat:
    def test_aws_is_missing(self, project, command):
        path = project.path_without("aws")
        assert project.error_line(*command, PATH=path).startswith("aws is not installed; see https://docs.aws")

    def test_the_region_is_missing(self, project, command):
        line = "no AWS region is configured; set AWS_REGION, or run aws configure"
        assert project.error_line(*command, **NO_REGION) == line

    def test_the_profile_is_missing(self, project, command):
        assert "profile (nobody) could not be found" in project.error_line(*command, **NO_REGION, AWS_PROFILE="nobody")

    def test_credentials_are_missing(self, project, command):
        assert "Unable to locate credentials" in project.error_line(*command, **NO_KEYS)

    def test_the_token_has_expired(self, project, command):
        endpoint = Endpoint(error=lambda number: "403 ExpiredToken")
        line = project.error_line(*command, AWS_ENDPOINT_URL=endpoint.url)
        assert "ExpiredToken" in line and line.endswith("; sign in to AWS again")


@pytest.mark.parametrize(
    ("command", "action"),
    [((PUSH,), "ecr:DescribeImages"), ((UPLOAD, FOLDER), "s3:PutObject")],
    ids=lambda value: value[0],
)
def test_a_missing_permission_is_reported_with_the_policy_that_has_it(project, command, action, person_without):
    line = project.error_line(*command, **person_without(action))
    assert "AccessDenied" in line and line.endswith("allow only certain folders of your bucket")


@pytest.mark.parametrize("command", [BUILD, PUSH])
def test_without_docker_no_repository_is_created(project, aws, command):
    line = project.error_line(command, PATH=project.path_without("docker"))
    assert line == f"docker is not installed; see {INSTALL_DOCKER}"
    assert aws.client("ecr").describe_repositories()["repositories"] == []


@pytest.mark.parametrize("command", [BUILD, PUSH])
@pytest.mark.parametrize("answer", ["--version) echo podman version 5.8.1", "buildx) echo buildah 1.39.0"])
def test_podman_is_refused_before_a_repository_is_created(project, aws, command, answer):
    path = project.path_with("docker", f"case $1 in {answer} ;; esac")
    line = project.error_line(command, PATH=path)
    assert line == f"docker is Podman on this machine, which is not supported; see {INSTALL_DOCKER}"
    assert aws.client("ecr").describe_repositories()["repositories"] == []


def put_image(aws, uri: str, media_type: str = DOCKER, region: str = REGION) -> None:
    """Stores an image in ECR, in a new repository."""
    ecr = aws.client("ecr", region=region)
    ecr.create_repository(repositoryName="sagemaker-tutorial")
    manifest = json.dumps({"mediaType": media_type})
    ecr.put_image(repositoryName="sagemaker-tutorial", imageTag=uri.split(":")[1], imageManifest=manifest)


@pytest.mark.parametrize(
    ("variables", "account", "region"),
    [
        ({}, ACCOUNT, REGION),
        ({"REGISTRY": f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com"}, ACCOUNT, "us-west-2"),
        ({"REGISTRY": f"{OTHER_ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"}, OTHER_ACCOUNT, REGION),
    ],
    ids=["own", "different region", "different account"],
)
def test_an_image_that_is_already_in_the_registry_is_not_built(project, aws, variables, account, region):
    uri = project.run(URI, **variables)
    put_image(aws, uri, region=region)
    ecr_backends[ACCOUNT][region].repositories["sagemaker-tutorial"].registry_id = account
    process = project.start(PUSH, PATH=project.path_without("docker"), **variables)
    assert process.communicate(timeout=60) == (f"{uri}\n", "already in ECR, nothing to do:\n")
    assert process.returncode == 0


def test_an_image_in_ecr_with_an_oci_manifest_is_an_error(project, aws):
    put_image(aws, project.run(URI), "application/vnd.oci.image.index.v1+json")
    line = project.error_line(PUSH)
    assert "has a manifest of type application/vnd.oci.image.index.v1+json in ECR" in line


def test_a_missing_repository_of_a_different_account_is_refused_first(project, aws):
    registry = f"{OTHER_ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
    put_image(aws, project.run(URI))
    line = project.error_line(PUSH, REGISTRY=registry, PATH=project.path_without("docker"))
    assert line == (
        f"REGISTRY={registry} has no repository sagemaker-tutorial, and account {ACCOUNT} cannot create one in "
        f"{OTHER_ACCOUNT}; ask the owner of {OTHER_ACCOUNT} to create it and to let you push"
    )


def test_a_clone_with_windows_line_endings_still_has_scripts_that_run(tmp_path):
    git = ("git", "-c", "user.name=person", "-c", "user.email=person@example.com")
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    copy_project(source, "docker", ".gitattributes")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message=all")):
        subprocess.run([*git, *command], cwd=source, check=True)
    subprocess.run([*git, "clone", "--quiet", "--config=core.autocrlf=true", source, clone], check=True)
    assert [path for path in (clone / "docker").rglob("*") if path.is_file() and b"\r" in path.read_bytes()] == []
    result = subprocess.run([clone / URI], env=os.environ | {"REGISTRY": "r"}, capture_output=True, text=True)
    assert result.stdout.startswith("r/sagemaker-tutorial:"), result.stderr
