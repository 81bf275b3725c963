"""AWS on this machine: moto's API server, in this process so that a test can also play SageMaker's part in it."""

import os
from typing import Any
from urllib.request import Request, urlopen

import boto3
from conftest import ENVIRONMENT
from moto.server import ThreadedMotoServer

REGION = "eu-central-1"
ACCOUNT = "123456789012"
BUCKET = "my-bucket"
NO_AWS = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("AWS_")}
NO_AWS |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


class AWS:
    """An API server with one bucket, and the environment of a person who uses it."""

    def __init__(self):
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.endpoint = "http://{}:{}".format(*self.server.get_host_and_port())
        self.environment = NO_AWS | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_DEFAULT_REGION": REGION,
        }

    def reset(self) -> None:
        urlopen(Request(f"{self.endpoint}/moto-api/reset", method="POST")).close()
        self.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def client(self, service: str) -> Any:
        keys = {
            f"aws_{name}": self.environment[f"AWS_{name.upper()}"] for name in ("access_key_id", "secret_access_key")
        }
        return boto3.client(service, region_name=REGION, endpoint_url=self.endpoint, **keys)

    def keys(self, prefix: str = "") -> list[str]:
        """The names of the objects in the bucket."""
        objects = self.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [item["Key"] for item in objects]
