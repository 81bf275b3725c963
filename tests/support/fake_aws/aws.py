"""A simulation of AWS: moto's API server in this process, so that a test can also act as SageMaker.

It does not imitate quotas, billing and most validation, and it starts no job.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import boto3
from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.sagemaker.models import FakeTrainingJob, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse
from moto.server import ThreadedMotoServer
from runs.programs import ENVIRONMENT, ROOT
from runs.tutorial import block
from werkzeug.serving import make_server

REGION = "eu-central-1"
ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/sagemaker-tutorial:1"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/sagemaker"
BIN = Path(sys.executable).parent
BUCKET = "my-bucket"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
NO_AWS = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("AWS_")}
NO_AWS |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


class AWS:
    """An API server with one bucket, and the environment of a person who uses it.

    `requests` are the CreateTrainingJob requests, and `next_job` is what the next job's description says. `refusal` is
    the code and message of the error that CreateTrainingJob ends with.
    """

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or else each request would be a line on stderr
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.endpoint = "http://{}:{}".format(*self.server.get_host_and_port())
        self.environment = NO_AWS | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_DEFAULT_REGION": REGION,
            "PATH": f"{BIN}:{BIN.parent / 'aws/bin'}:{os.environ['PATH']}",  # with an AWS CLI of the tests' own
        }
        create_training_job, init = SageMakerResponse.create_training_job, FakeTrainingJob.__init__

        def record(response: SageMakerResponse) -> Any:
            if self.refusal:
                raise JsonRESTError(*self.refusal)
            request = json.loads(response.body)
            self.check_pass_role(response.headers, request["RoleArn"])
            self.requests.append(request)
            return create_training_job(response)

        def stop(response: SageMakerResponse) -> ActionResult:
            job = response.sagemaker_backend.training_jobs[json.loads(response.body)["TrainingJobName"]]
            if job.training_job_status != "InProgress":
                raise JsonRESTError("ValidationException", f"the training job is in status {job.training_job_status}")
            self.describe(job, training_job_status="Stopping", secondary_status="Stopping")
            return ActionResult({})

        def describe(job: FakeTrainingJob, *args: Any, **kwargs: Any) -> None:
            init(job, *args, **kwargs)
            self.describe(job, **self.next_job)

        SageMakerResponse.create_training_job, FakeTrainingJob.__init__ = record, describe
        SageMakerResponse.stop_training_job = stop

    def reset(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.refusal: tuple[str, str] | None = None
        self.next_job = {"training_job_status": "Completed", "secondary_status": "Completed"}
        self.policies: dict[str, dict[str, Any]] = {}  # by access key
        self.enforces_policies = False
        self.post("reset")
        everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        self.environment |= self.person("owner", json.dumps({"Version": "2012-10-17", "Statement": everything}))
        self.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def post(self, path: str, data: bytes = b"") -> None:
        headers = {"Content-Type": "text/plain"}
        urlopen(Request(f"{self.endpoint}/moto-api/{path}", data=data, headers=headers, method="POST")).close()

    def client(self, service: str, region: str = REGION, environment: dict[str, str] | None = None) -> Any:
        """A client with the credentials of an environment, or else of the account's owner."""
        environment = environment or self.environment
        keys = {key.lower(): environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        return boto3.client(service, region_name=region, endpoint_url=self.endpoint, **keys)

    def keys(self, prefix: str = "") -> list[str]:
        """The names of the objects in the bucket."""
        pages = self.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def put_image(self, tag: str) -> None:
        ecr = self.client("ecr")
        if not ecr.describe_repositories()["repositories"]:
            ecr.create_repository(repositoryName="sagemaker-tutorial")
        manifest = {"schemaVersion": 2, "mediaType": DOCKER, "config": {"digest": f"sha256:{0:064}"}, "layers": []}
        ecr.put_image(repositoryName="sagemaker-tutorial", imageManifest=json.dumps(manifest), imageTag=tag)

    def person(self, name: str, policy: str) -> dict[str, str]:
        """Returns the environment of a new user with this policy, which counts within `enforce_policies`."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=as_known_to_moto(json.loads(policy)))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self.policies[key["AccessKeyId"]] = json.loads(policy)
        return self.environment | {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def person_with(self, name: str) -> dict[str, str]:
        """The environment of somebody who has a policy of docker/policies."""
        return self.person(name, filled_in((ROOT / f"docker/policies/{name}.json").read_text()))

    def set_up_as_administrator(self) -> tuple[dict[str, str], dict[str, str]]:
        """Makes bucket, role and policies with the README's commands; the environments of the person and the role."""
        commands = filled_in(block("export SAGEMAKER_ROLE=")) + block("aws iam create-role")
        self.client("s3").delete_bucket(Bucket=BUCKET)
        kwargs = {"cwd": ROOT, "env": self.environment, "check": True, "capture_output": True, "text": True}
        output = subprocess.run(["bash", "-ec", commands], **kwargs).stdout
        (policy,) = re.findall(r"arn:aws:iam::\d+:policy/[\w-]+", output)
        iam = self.client("iam")
        laptop = iam.get_policy_version(PolicyArn=policy, VersionId="v1")["PolicyVersion"]["Document"]
        role = iam.get_role_policy(RoleName="sagemaker", PolicyName="sagemaker-tutorial")["PolicyDocument"]
        return self.person("person", json.dumps(laptop)), self.person("role", json.dumps(role))

    @contextlib.contextmanager
    def enforce_policies(self) -> Iterator[None]:
        self.post("reset-auth", b"0")
        self.enforces_policies = True
        try:
            yield
        finally:
            self.enforces_policies = False
            self.post("reset-auth", b"inf")

    def check_pass_role(self, headers: Mapping[str, str], role: str) -> None:
        """Fails, as moto does not, unless the sender of a request may pass the role to SageMaker."""
        (key,) = re.findall(r"Credential=(\w+)/", headers["Authorization"])
        service = {"iam:PassedToService": "sagemaker.amazonaws.com"}
        if self.enforces_policies and not allows(self.policies[key], "iam:PassRole", role, service):
            message = f"User: {key} is not authorized to perform: iam:PassRole on resource: {role}"
            raise JsonRESTError("AccessDeniedException", message)

    def create_job(
        self, name: str, environment: dict[str, str] | None = None, role: str = ROLE, **description: Any
    ) -> None:
        """A job that somebody has started, by default the account's owner, and what its description says."""
        self.client("sagemaker", environment=environment).create_training_job(
            TrainingJobName=name,
            AlgorithmSpecification={"TrainingInputMode": "File"},
            RoleArn=role,
            OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/output"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
            StoppingCondition={"MaxRuntimeInSeconds": 60},
        )
        self.describe(name, **description)

    def describe(self, job: FakeTrainingJob | str, **description: Any) -> None:
        """Changes what DescribeTrainingJob says of a job."""
        if isinstance(job, str):
            job = sagemaker_backends[ACCOUNT][REGION].training_jobs[job]
        for name, value in description.items():
            setattr(job, name, value)

    def log(self, job_name: str, host: str, lines: list[str]) -> None:
        """Sends a host's log to CloudWatch, as SageMaker does."""
        logs, stream = self.client("logs"), f"{job_name}/{host}-{time.time_ns()}"
        if not logs.describe_log_groups(logGroupNamePrefix=LOG_GROUP)["logGroups"]:
            logs.create_log_group(logGroupName=LOG_GROUP)
        logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
        events = [{"timestamp": time.time_ns() // 10**6, "message": line} for line in lines if line]
        logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)


def filled_in(text: str, bucket: str = BUCKET) -> str:
    """Replaces the placeholders of the tutorial."""
    return text.replace("<my-bucket>", bucket).replace("<account-id>", ACCOUNT).replace("<role-name>", "sagemaker")


def allows(policy: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a policy allows an action on a resource. Of conditions, it knows StringEquals."""
    for statement in as_list(policy["Statement"]):
        conditions = statement.get("Condition", {})
        assert statement["Effect"] == "Allow" and conditions.keys() <= {"StringEquals"}, "unknown to this stand-in"
        if (
            any(fnmatchcase(action, pattern) for pattern in as_list(statement["Action"]))
            and any(fnmatchcase(resource, pattern) for pattern in as_list(statement["Resource"]))
            and all(context.get(key) in as_list(value) for key, value in conditions.get("StringEquals", {}).items())
        ):
            return True
    return False


def as_list(value: Any) -> list[Any]:
    """Returns the list that a policy may abbreviate by its only element."""
    return value if isinstance(value, list) else [value]


def as_known_to_moto(policy: dict[str, Any]) -> str:
    """Returns a policy that moto can evaluate: it knows the resources of S3 only, and no conditions."""
    for statement in as_list(policy["Statement"]):
        if not str(statement["Action"]).lstrip("[']").startswith("s3:"):
            statement["Resource"] = "*"
        statement.pop("Condition", None)
    return json.dumps(policy)


class Endpoint:
    """Another way to the same AWS, which writes down the requests, is slow, and fails as told.

    Args:
        delay: Seconds that it adds to each request.
        address: Where it listens, "0.0.0.0" for containers.
        error: What the request of a number from 1 on fails with, such as "503 SlowDown", if it does.
    """

    def __init__(
        self, delay: float = 0.0, error: Callable[[int], str | None] = lambda number: None, address: str = "127.0.0.1"
    ):
        self.delay, self.error = delay, error
        self.requests: list[tuple[float, str, str]] = []  # time, method, path
        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server(address, 0, self.answer, threaded=True, request_handler=MotoRequestHandler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://{address}:{self.server.port}"

    def answer(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        self.requests.append((time.monotonic(), environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        error = self.error(len(self.requests))
        time.sleep(self.delay)
        if not error:
            return self.app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(error, [("Content-Type", "application/xml")])
        code = error.split()[1]
        error = f"<Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>"
        return [f"<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>".encode()]
