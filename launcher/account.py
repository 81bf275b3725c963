"""What can be missing in the AWS account."""

import os
import re
from typing import Any

from launcher.checks import folders


def find_region() -> str | None:
    import boto3

    return boto3.Session().region_name or os.environ.get("AWS_REGION")  # which boto3 does not read


def check_account(options: Any) -> None:
    """Raises ValueError for what is missing: region, buckets, input, image."""
    import boto3

    session = boto3.Session(region_name=find_region())
    if not session.region_name:
        raise ValueError("there is no AWS region; name one, as by: export AWS_DEFAULT_REGION=us-east-1")
    account = session.client("sts").get_caller_identity()["Account"]
    save_dir = options.hyperparams.get("logger.save_dir", "")
    for name, uri in (folders(options) | {f"--hyperparams logger.save_dir={save_dir}": save_dir}).items():
        if uri.startswith("s3://"):
            check_bucket(session, name, uri.split("/")[2])
    bucket, _, folder = options.input_path.removeprefix("s3://").rstrip("/").partition("/")
    prefix = f"{folder}/" if folder else ""
    if not session.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents"):
        raise ValueError(f"--input_path={options.input_path}: is empty")
    check_image(session, options.image_uri, account)


def check_bucket(session: Any, name: str, bucket: str) -> None:
    s3 = session.client("s3")
    try:
        region = s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] or "us-east-1"
    except s3.exceptions.NoSuchBucket as error:
        raise ValueError(f"{name}: there is no bucket {bucket}") from error
    if region != session.region_name:
        raise ValueError(f"{name}: bucket {bucket} is in {region}, the job would be in {session.region_name}")


def check_image(session: Any, image_uri: str, account: str) -> None:
    image = re.fullmatch(r"(\d{12})\.dkr\.ecr\.([^.]+)\.amazonaws\.com[^/]*/([^:@]+)(?:@(.+)|:(.+))?", image_uri)
    if image and image[1] == account:
        image_id = {"imageDigest": image[4]} if image[4] else {"imageTag": image[5] or "latest"}
        ecr = session.client("ecr", region_name=image[2])
        try:
            ecr.describe_images(repositoryName=image[3], imageIds=[image_id])
        except (ecr.exceptions.RepositoryNotFoundException, ecr.exceptions.ImageNotFoundException) as error:
            line = "is not in the registry; push it with ./docker/push-image.sh"
            raise ValueError(f"--image_uri={image_uri}: {line}") from error
