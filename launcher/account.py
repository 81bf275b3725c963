"""What can be missing in the AWS account."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from launcher.checks import folders, refuse_if
from launcher.command_line import warn


def find_session(options: Any) -> Any:
    """Whose account it is, and the region of the job and all it uses, found as docker/aws.sh does."""
    import boto3

    region = options.region or os.environ.get("AWS_REGION")  # which boto3 does not read
    region = region or boto3.Session(profile_name=options.profile).region_name
    needs_region = not (options.is_local or options.dry_run)
    refuse_if(needs_region and not region, "there is no AWS region; name one, such as --region=us-east-1")
    return boto3.Session(profile_name=options.profile, region_name=region or "us-east-1")


def check_account(options: Any) -> None:
    """Raises ValueError for what is missing, too small or elsewhere; warns of what this person may not look at."""
    session = find_session(options)
    session.client("sts").get_caller_identity()  # which says, unlike S3, what is wrong with credentials
    save_dir = options.hyperparams.get("logger.save_dir", "")
    for name, uri in (folders(options) | {f"--hyperparams logger.save_dir={save_dir}": save_dir}).items():
        if uri.startswith("s3://"):
            with denial_as_warning(name):
                check_folder(session, name, uri)
    with contextlib.suppress(ClientError):  # there is none, or it is not for this person to know
        if options.job_name and session.client("sagemaker").describe_training_job(TrainingJobName=options.job_name):
            raise ValueError(f"--job_name={options.job_name}: is taken, and the code of that job would be written over")
    with denial_as_warning(f"--image_uri={options.image_uri}"):
        check_image(session, options.image_uri)
    with denial_as_warning(f'quota "{quota_name(options)}"'):
        check_quota(session, quota_name(options), options.instance_count)


@contextlib.contextmanager
def denial_as_warning(name: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if not re.search("403|AccessDenied", error.response["Error"]["Code"]):
            raise
        warn(f"{name}: you may not look at it, so nobody knows yet whether it fits; the job's role may be allowed to")


def check_folder(session: Any, name: str, uri: str) -> None:
    s3 = session.client("s3")
    bucket, _, folder = uri.removeprefix("s3://").partition("/")
    try:
        # get_bucket_location would call eu-west-1 "EU" for old buckets.
        region = s3.head_bucket(Bucket=bucket)["BucketRegion"]
    except ClientError as error:
        refuse_if(error.response["Error"]["Code"] == "404", f"{name}: there is no bucket {bucket}")
        raise
    refuse_if(region != session.region_name, f"{name}: is in {region}, the job would be in {session.region_name}")
    if name.startswith("--input_path"):
        files = s3.list_objects_v2(Bucket=bucket, Prefix=f"{folder.rstrip('/')}/".lstrip("/"), MaxKeys=1)
        refuse_if(not files.get("Contents"), f"{name}: is empty")


def check_image(session: Any, image_uri: str) -> None:
    image = re.fullmatch(r"(\d{12})\.dkr\.ecr[^.]*\.([^.]+)\.[^/]+/([^:@]+)(?:@(.+)|:(.+))?", image_uri)
    if not image:
        return
    name, region = f"--image_uri={image_uri}", session.region_name
    refuse_if(image[2] != region, f"{name}: is in {image[2]}, the job would be in {region}")
    image_id = {"imageDigest": image[4]} if image[4] else {"imageTag": image[5] or "latest"}
    ecr = session.client("ecr")
    try:
        found = ecr.describe_images(registryId=image[1], repositoryName=image[3], imageIds=[image_id])["imageDetails"]
    except (ecr.exceptions.RepositoryNotFoundException, ecr.exceptions.ImageNotFoundException) as error:
        raise ValueError(f"{name}: is not in the registry; push it with ./docker/push-image.sh") from error
    kind = found[0].get("imageManifestMediaType", "")
    line = f"{name}: has the media type {kind}, but SageMaker takes Docker's own; see ./docker/push-image.sh"
    refuse_if("oci" in kind or "list" in kind, line)


def quota_name(options: Any) -> str:
    return f"{options.instance_type} for {'spot ' if options.spot_instances else ''}training job usage"


def check_quota(session: Any, name: str, count: int) -> None:
    pages = session.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    value = next((quota["Value"] for page in pages for quota in page["Quotas"] if quota["QuotaName"] == name), count)
    line = f'your quota "{name}" is {value:.0f}; ask for more in the Service Quotas of the AWS console'
    refuse_if(value < count, f"--instance_count={count}: {line}")
