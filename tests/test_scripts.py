"""The scripts of the cloud, as processes, without Docker; moto plays AWS."""

import hashlib
import http.server
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from aws import ACCOUNT, BUCKET, REGION, ROLE
from moto.s3.models import s3_backends
from programs import ROOT

AWS_CLI = Path(sys.executable).parents[1] / "aws/bin"
NAME = "cifar-10-python.tar.gz"
FOLDER = f"s3://{BUCKET}/datasets/cifar-10"
URI, PUSH, UPLOAD = "docker/image-uri.sh", "docker/push-image.sh", "upload-cifar-10.sh"
EXPIRED = (
    b"<ErrorResponse><Error><Code>ExpiredToken</Code><Message>The token is expired</Message></Error></ErrorResponse>"
)
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
NO_REGION = {"AWS_DEFAULT_REGION": "", "AWS_REGION": ""}
needs_wget = pytest.mark.skipif(not shutil.which("wget"), reason="there is no wget")


class Project:
    """A copy of what the scripts use, with a small archive in .cache, and the environment of a person."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        shutil.copytree(ROOT / "docker", folder / "docker")
        shutil.copy(ROOT / UPLOAD, folder)
        self.folder = folder
        self.archive = folder / ".cache" / NAME
        self.archive.parent.mkdir()
        self.environment = environment | {"PATH": f"{AWS_CLI}:{os.environ['PATH']}"}
        self.change_archive(b"images")

    def change_archive(self, content: bytes) -> None:
        self.archive.write_bytes(content)
        self.environment["CIFAR10_MD5"] = hashlib.md5(content).hexdigest()

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        """Starts a script from a folder that is not the project's."""
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen([self.folder / script, *arguments], env=self.environment | variables, cwd="/", **output)

    def run(self, script: str, *arguments: str, **variables: str) -> str:
        """What a script prints; it must succeed, and say nothing on stderr."""
        process = self.start(script, *arguments, **variables)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, ""), stderr
        return stdout.removesuffix("\n")

    def error_line(self, script: str, *arguments: str, **variables: str) -> str:
        """The line on stderr, after a check that it is the only one, with exit code 2, and that no file was written."""
        files = sorted(self.folder.rglob("*"))
        process = self.start(script, *arguments, **variables)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (2, ""), stderr
        assert sorted(self.folder.rglob("*")) == files
        (line,) = stderr.splitlines()
        script, line = line.split(": error: ", 1)
        assert script in (Path(URI).name, Path(PUSH).name, UPLOAD)
        return line

    def path_without(self, *missing: str) -> str:
        """A PATH with all that the scripts call, but for these commands."""
        folder = self.folder / f"without-{'-'.join(missing)}"
        folder.mkdir()
        for command in {"env", "bash", "dirname", "tr", "python3", "aws"} - set(missing):
            (folder / command).symlink_to(shutil.which(command, path=self.environment["PATH"]))
        return str(folder)


@pytest.fixture
def project(tmp_path: Path, aws) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project", aws.environment)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts web servers, each with one answer to all requests: `serve(b"content")` returns the URL of one.

    The last `missing` bytes of an answer do not come.
    """
    servers, test_has_ended = [], threading.Event()

    def start(body: bytes, status: int = 200, missing: int = 0) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + missing))
                self.end_headers()
                self.wfile.write(body)
                if missing:
                    test_has_ended.wait(60)

            do_GET = do_POST

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever).start()
        return f"http://127.0.0.1:{server.server_port}/{NAME}"

    yield start
    test_has_ended.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def person(aws) -> Iterator[Callable[[dict], dict[str, str]]]:
    """Makes AWS enforce permissions; `person(policy)` returns the keys of somebody who has those of a policy."""

    def enforce_after(num_requests: str) -> None:
        url, headers = f"{aws.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urlopen(Request(url, num_requests.encode(), headers)).close()

    def create(policy: dict) -> dict[str, str]:
        iam = aws.client("iam")
        iam.create_user(UserName="person")
        iam.put_user_policy(UserName="person", PolicyName="laptop", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="person")["AccessKey"]
        enforce_after("0")
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    yield create
    enforce_after("inf")


def load_policy(name: str) -> dict:
    text = (ROOT / "docker/policies" / name).read_text()
    return json.loads(text.replace("<my-bucket>", BUCKET).replace("<account-id>", ACCOUNT))


def stored_md5(aws) -> str:
    return aws.client("s3").head_object(Bucket=BUCKET, Key=f"datasets/cifar-10/{NAME}")["Metadata"]["md5"]


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ({"AWS_DEFAULT_REGION": ""}, "eu-west-3"),
        ({"AWS_DEFAULT_REGION": "", "AWS_PROFILE": "north"}, "eu-north-1"),
    ],
)
def test_the_region_comes_from_the_environment_or_else_from_the_profile(project, tmp_path, variables, region):
    profiles = tmp_path / "aws-config"
    profiles.write_text("[default]\nregion = eu-west-3\n[profile north]\nregion = eu-north-1\n")
    registry = project.run(URI, AWS_CONFIG_FILE=str(profiles), **variables).split("/")[0]
    assert registry == f"{ACCOUNT}.dkr.ecr.{region}.amazonaws.com"


@pytest.mark.parametrize(("region", "domain"), [("cn-north-1", "amazonaws.com.cn"), ("us-gov-west-1", "amazonaws.com")])
def test_china_has_a_domain_of_its_own_and_govcloud_has_none(project, region, domain):
    registry = project.run(URI, AWS_REGION=region).split("/")[0]
    assert registry == f"{ACCOUNT}.dkr.ecr.{region}.{domain}"


def test_the_tag_changes_with_each_file_of_the_image_and_with_nothing_else(project):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line.removeprefix("!") for line in lines if line.startswith("!")]
    files = [path for pattern in ("docker/Dockerfile", *patterns) for path in ROOT.glob(pattern)]
    names = [path.relative_to(ROOT) for path in files]
    assert len(names) == 6
    tags = [project.run(URI, REGISTRY="r")]
    assert tags[0].startswith("r/sagemaker-tutorial:") and len(tags[0].split(":")[1]) == 12
    (project.folder / "docker/build-image.sh").write_text("")
    (project.folder / "docker/Dockerfile").touch()
    project.folder = project.folder.rename(project.folder.with_name("renamed"))
    assert project.run(URI, REGISTRY="r") == tags[0]
    for name in names:
        with open(project.folder / name, "a") as file:
            file.write("\n")
        tags.append(project.run(URI, REGISTRY="r"))
    assert len(set(tags)) == 7


def test_a_registry_and_a_tag_of_the_persons_own_need_no_aws(project):
    path = project.path_without("aws")
    assert project.run(URI, PATH=path, REGISTRY="127.0.0.1:5000", IMAGE_TAG="mine") == (
        "127.0.0.1:5000/sagemaker-tutorial:mine"
    )


@pytest.mark.parametrize("command", [(URI,), (PUSH,), (UPLOAD, FOLDER)], ids=lambda command: command[0])
class TestEveryScriptSaysInOneLineThat:
    def test_aws_is_missing(self, project, command):
        path = project.path_without("aws")
        assert project.error_line(*command, PATH=path).startswith("aws is not installed; see https://docs.aws")

    def test_the_region_is_missing(self, project, command):
        assert project.error_line(*command, **NO_REGION) == "no region; set AWS_REGION, or run aws configure"

    def test_the_profile_is_missing(self, project, command):
        assert "profile (nobody) could not be found" in project.error_line(*command, **NO_REGION, AWS_PROFILE="nobody")

    def test_credentials_are_missing(self, project, command):
        assert "Unable to locate credentials" in project.error_line(*command, **NO_KEYS)

    def test_the_token_has_expired(self, project, command, serve):
        line = project.error_line(*command, AWS_ENDPOINT_URL=serve(EXPIRED, status=403))
        assert "ExpiredToken" in line and line.endswith("; sign in to AWS again")


@pytest.mark.parametrize("command", [(PUSH,), (UPLOAD, FOLDER)], ids=lambda command: command[0])
def test_a_missing_permission_is_told_with_the_policy_that_has_it(project, command, person):
    policy = load_policy("laptop.json")
    policy["Statement"] = [statement for statement in policy["Statement"] if statement["Sid"] == "LogIn"]
    line = project.error_line(*command, **person(policy))
    assert line.endswith("; docker/policies/laptop.json has the permissions that you need")


def test_denied_is_not_taken_for_a_missing_repository(project, person):
    policy = load_policy("laptop.json")
    for statement in policy["Statement"]:
        if "ecr:DescribeImages" in statement["Action"]:
            statement["Action"].remove("ecr:DescribeImages")
    assert "ecr:DescribeImages" in project.error_line(PUSH, **person(policy))


def test_without_docker_nothing_is_created(project, aws):
    line = project.error_line(PUSH, PATH=project.path_without("docker"))
    assert line == "docker is not installed; see https://docs.docker.com/engine/install/"
    assert aws.client("ecr").describe_repositories()["repositories"] == []


def put_image(aws, uri: str, media_type: str) -> None:
    manifest = json.dumps({"mediaType": media_type})
    aws.client("ecr").create_repository(repositoryName="sagemaker-tutorial")
    aws.client("ecr").put_image(repositoryName="sagemaker-tutorial", imageTag=uri.split(":")[1], imageManifest=manifest)


def test_an_image_that_is_in_ecr_is_not_built(project, aws):
    uri = project.run(URI)
    put_image(aws, uri, "application/vnd.docker.distribution.manifest.v2+json")
    process = project.start(PUSH, PATH=project.path_without("docker"))
    assert process.communicate(timeout=60) == (f"{uri}\n", "in ECR already, nothing to do:\n")
    assert process.returncode == 0


def test_an_image_that_is_in_ecr_with_another_manifest_is_an_error(project, aws):
    put_image(aws, project.run(URI), "application/vnd.oci.image.index.v1+json")
    line = project.error_line(PUSH)
    assert "has a manifest of the type application/vnd.oci.image.index.v1+json in ECR" in line


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        (FOLDER, f"datasets/cifar-10/{NAME}"),
        (f"{FOLDER}//", f"datasets/cifar-10/{NAME}"),
        (f"s3://{BUCKET}", NAME),
        (f"s3://{BUCKET}/", NAME),
    ],
)
def test_the_archive_is_uploaded_to_a_folder(project, aws, uri, key):
    assert project.run(UPLOAD, uri) == f"uploaded {NAME} to {uri.rstrip('/')}"
    assert aws.keys() == [key]
    assert aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"images"


def test_an_archive_that_is_there_is_not_uploaded_again(project, aws):
    project.run(UPLOAD, FOLDER)
    key = {"Bucket": BUCKET, "Key": f"datasets/cifar-10/{NAME}"}
    aws.client("s3").put_object(**key, Body=b"untouched", Metadata={"md5": stored_md5(aws)})
    assert project.run(UPLOAD, FOLDER) == f"{NAME} is in {FOLDER} already"
    assert aws.client("s3").get_object(**key)["Body"].read() == b"untouched"


def test_a_changed_archive_is_uploaded_again(project, aws):
    project.run(UPLOAD, FOLDER)
    project.change_archive(b"other images")
    assert project.run(UPLOAD, FOLDER).startswith("uploaded")
    assert stored_md5(aws) == hashlib.md5(b"other images").hexdigest()


def test_an_archive_that_another_program_has_uploaded_is_replaced(project, aws):
    aws.client("s3").put_object(Bucket=BUCKET, Key=f"datasets/cifar-10/{NAME}", Body=b"who knows")
    assert project.run(UPLOAD, FOLDER).startswith("uploaded")
    assert stored_md5(aws) == project.environment["CIFAR10_MD5"]


def test_the_persons_policy_allows_the_upload(project, aws, person):
    assert project.run(UPLOAD, FOLDER, **person(load_policy("laptop.json"))).startswith("uploaded")


@needs_wget
def test_a_missing_archive_is_downloaded_and_kept(project, aws, serve):
    project.archive.unlink()
    assert project.run(UPLOAD, FOLDER, CIFAR10_URL=serve(b"images")).startswith("uploaded")
    assert [path.name for path in project.archive.parent.iterdir()] == [NAME]
    assert project.archive.read_bytes() == b"images"


@needs_wget
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"body": b"", "status": 404}, ["wget cannot get http", "put the archive into .cache yourself"]),
        ({"body": b"damaged"}, ["MD5", "it was not kept, try again later"]),
    ],
)
def test_a_failed_download_leaves_nothing(project, aws, serve, answer, words):
    project.archive.unlink()
    line = project.error_line(UPLOAD, FOLDER, CIFAR10_URL=serve(**answer))
    assert [word for word in words if word not in line] == []
    assert aws.keys() == []


@needs_wget
def test_an_interrupted_download_leaves_nothing(project, aws, serve):
    project.archive.unlink()
    process = project.start(UPLOAD, FOLDER, CIFAR10_URL=serve(b"ima", missing=3))
    while not any(path.stat().st_size for path in project.archive.parent.iterdir()):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert list(project.archive.parent.iterdir()) == []
    assert aws.keys() == []


def test_a_damaged_archive_is_refused_with_the_ways_out(project, aws):
    project.archive.write_bytes(b"damaged")
    line = project.error_line(UPLOAD, FOLDER)
    assert "delete it to download it again" in line
    assert f"CIFAR10_MD5={hashlib.md5(b'damaged').hexdigest()}" in line
    assert aws.keys() == []


def test_only_cifar_10_is_accepted_without_a_checksum_of_ones_own(project):
    line = project.error_line(UPLOAD, FOLDER, CIFAR10_MD5="")
    assert "not c58f30108f718f92721af3b95e74349a;" in line


def test_a_missing_bucket_is_not_created(project, aws):
    line = project.error_line(UPLOAD, "s3://missing-bucket/datasets")
    assert "NoSuchBucket" in line and line.endswith("; create the bucket with aws s3 mb, or correct its name")
    assert [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]] == [BUCKET]


def test_a_bucket_in_another_region_is_refused(project, aws):
    line = project.error_line(UPLOAD, FOLDER, AWS_REGION="us-west-2")
    assert f"{BUCKET} is in {REGION}" in line and line.endswith(f"set AWS_REGION={REGION}")


def test_a_bucket_of_the_old_location_eu_is_in_eu_west_1(project, aws):
    s3 = aws.client("s3", region="eu-west-1")
    s3.create_bucket(Bucket="old-bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3_backends[ACCOUNT]["aws"].buckets["old-bucket"].region_name = "EU"  # which moto lets nobody ask for
    assert project.error_line(UPLOAD, "s3://old-bucket").endswith("set AWS_REGION=eu-west-1")
    assert project.run(UPLOAD, "s3://old-bucket", AWS_REGION="eu-west-1").startswith("uploaded")


@pytest.mark.parametrize(
    "arguments", [(), (FOLDER, FOLDER), ("/datasets/cifar-10",), ("s3://",), ("s3://<my-bucket>/x",), ("--help",)]
)
def test_wrong_arguments_are_repeated_beside_the_right_ones(project, arguments):
    line = project.error_line(UPLOAD, *arguments)
    assert (
        line == f"usage: ./upload-cifar-10.sh s3://<my-bucket>/<folder>, not '{' '.join(arguments)}'; is S3_PATH set?"
    )


POLICIES = ("execution-role.json", "laptop.json", "optional.json", "trust.json")
ON_EVERYTHING = {"ecr:GetAuthorizationToken", "sts:GetCallerIdentity", "cloudwatch:PutMetricData"}


@pytest.mark.parametrize("name", ["execution-role.json", "laptop.json"])
def test_a_policy_allows_no_more_than_it_names(name):
    policy = load_policy(name)
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        assert statement["Effect"] == "Allow"
        assert "*" not in "".join(actions)
        if "*" in resources:
            assert set(actions) <= ON_EVERYTHING
        if "cloudwatch:PutMetricData" in actions or "iam:PassRole" in actions:
            assert "StringEquals" in statement["Condition"]


@pytest.mark.parametrize("name", POLICIES)
def test_the_policies_hold_in_every_partition(name):
    arns = re.findall(r'"(arn:[^"]*)"', (ROOT / "docker/policies" / name).read_text())
    assert all(arn.startswith("arn:*:") for arn in arns)


def test_the_policies_have_the_placeholders_of_the_tutorial():
    texts = [(ROOT / "docker/policies" / name).read_text() for name in POLICIES]
    assert set(re.findall(r"<.*?>", "".join(texts))) == {"<account-id>", "<role-name>", "<my-bucket>", "<key-id>"}


def test_the_optional_statements_are_named_after_arguments_of_the_estimator():
    from launcher.sagemaker_sdk import PyTorch  # only here, as it takes seconds

    known = {name for base in PyTorch.__mro__ for name in inspect.signature(base.__init__).parameters}
    for statement in load_policy("optional.json")["Statement"]:
        words = re.findall("[A-Z][a-z]+", statement["Sid"].split("And")[0].split("Or")[0])
        argument = "_".join(words).lower()
        assert argument in known and f"`{argument}`" in (ROOT / "docs/permissions.md").read_text()


def test_the_administrators_commands_make_a_role_that_sagemaker_may_take_and_policies_without_placeholders(aws):
    aws.set_up_as_administrator()
    iam = aws.client("iam")
    role = iam.get_role(RoleName="sagemaker")["Role"]
    assert role["Arn"] == ROLE
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert (trust["Principal"], trust["Action"]) == ({"Service": "sagemaker.amazonaws.com"}, "sts:AssumeRole")
    (policy,) = iam.list_policies(Scope="Local")["Policies"]
    documents = [
        iam.get_role_policy(RoleName="sagemaker", PolicyName="sagemaker-tutorial")["PolicyDocument"],
        iam.get_policy_version(PolicyArn=policy["Arn"], VersionId="v1")["PolicyVersion"]["Document"],
    ]
    assert "<" not in json.dumps(documents)
    assert aws.client("s3").get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == REGION


def test_after_the_administrators_commands_the_person_uploads_and_the_role_keeps_checkpoints(project, aws):
    person, role = aws.set_up_as_administrator()

    def s3(environment: dict[str, str], *arguments: str) -> str:
        command = ["aws", "s3api", *arguments, f"--bucket={BUCKET}"]
        return subprocess.run(command, env=environment, cwd=project.folder, capture_output=True, text=True).stderr

    data, checkpoint = f"--key=datasets/cifar-10/{NAME}", "--key=checkpoints/my-run/last-step=1.ckpt"
    with aws.enforce_policies():
        assert project.run(UPLOAD, FOLDER, **person).startswith("uploaded")
        assert s3(role, "get-object", data, "data") == ""
        assert s3(role, "put-object", checkpoint, "--body=data") == ""
        assert s3(person, "get-object", checkpoint, "checkpoint") == ""
        assert s3(role, "delete-object", checkpoint) == ""
        assert "AccessDenied" in s3(role, "delete-object", data)
        assert "AccessDenied" in s3(person, "put-object", checkpoint, "--body=data")
