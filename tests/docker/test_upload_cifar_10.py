"""upload-cifar-10.sh, as a process; moto imitates S3."""

import hashlib
import http.server
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from fake_aws.aws import ACCOUNT, BUCKET, REGION
from moto.s3.models import s3_backends
from runs.scripts import ARCHIVE, FOLDER, UPLOAD
from runs.waiting import wait_until

pytestmark = pytest.mark.slow  # they start the AWS CLI several times
needs_wget = pytest.mark.skipif(not shutil.which("wget"), reason="there is no wget")


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts web servers, each with the same answer to all requests: `serve(b"content")` returns its URL.

    The last `missing` bytes of an answer are never sent.
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
        return f"http://127.0.0.1:{server.server_port}/{ARCHIVE}"

    yield start
    test_has_ended.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def stored_md5(aws) -> str:
    """Returns the checksum that S3 has recorded for the archive."""
    return aws.client("s3").head_object(Bucket=BUCKET, Key=f"datasets/cifar-10/{ARCHIVE}")["Metadata"]["md5"]


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        (FOLDER, f"datasets/cifar-10/{ARCHIVE}"),
        (f"{FOLDER}//", f"datasets/cifar-10/{ARCHIVE}"),
        (f"s3://{BUCKET}", ARCHIVE),
        (f"s3://{BUCKET}/", ARCHIVE),
    ],
)
def test_the_archive_is_uploaded_to_a_folder(project, aws, uri, key):
    assert project.run(UPLOAD, uri) == f"uploaded {ARCHIVE} to {uri.rstrip('/')}"
    assert aws.keys() == [key]
    assert aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"images"


def test_an_uploaded_archive_is_not_uploaded_again(project, aws):
    project.run(UPLOAD, FOLDER)
    key = {"Bucket": BUCKET, "Key": f"datasets/cifar-10/{ARCHIVE}"}
    aws.client("s3").put_object(**key, Body=b"untouched", Metadata={"md5": stored_md5(aws)})
    assert project.run(UPLOAD, FOLDER) == f"{ARCHIVE} is already in {FOLDER}"
    assert aws.client("s3").get_object(**key)["Body"].read() == b"untouched"


def test_a_changed_archive_is_uploaded_again(project, aws):
    project.run(UPLOAD, FOLDER)
    project.change_archive(b"other images")
    assert project.run(UPLOAD, FOLDER).startswith("uploaded")
    assert stored_md5(aws) == hashlib.md5(b"other images").hexdigest()


def test_an_archive_without_a_recorded_checksum_is_replaced(project, aws):
    aws.client("s3").put_object(Bucket=BUCKET, Key=f"datasets/cifar-10/{ARCHIVE}", Body=b"unknown")
    assert project.run(UPLOAD, FOLDER).startswith("uploaded")
    assert stored_md5(aws) == project.environment["CIFAR10_MD5"]


@needs_wget
def test_a_missing_archive_is_downloaded_and_kept(project, aws, serve):
    project.archive.unlink()
    assert project.run(UPLOAD, FOLDER, CIFAR10_URL=serve(b"images")).startswith("uploaded")
    assert [path.name for path in project.archive.parent.iterdir()] == [ARCHIVE]
    assert project.archive.read_bytes() == b"images"


@needs_wget
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"body": b"", "status": 404}, ["could not download http", "put the archive into .cache yourself"]),
        ({"body": b"damaged"}, ["MD5", "the download was discarded: try again later"]),
    ],
)
def test_a_failed_download_leaves_no_file(project, aws, serve, answer, words):
    project.archive.unlink()
    line = project.error_line(UPLOAD, FOLDER, CIFAR10_URL=serve(**answer))
    assert [word for word in words if word not in line] == []
    assert aws.keys() == []


@needs_wget
def test_an_interrupted_download_leaves_no_file(project, aws, serve):
    project.archive.unlink()
    process = project.start(UPLOAD, FOLDER, CIFAR10_URL=serve(b"ima", missing=3))
    wait_until(lambda: any(path.stat().st_size for path in project.archive.parent.iterdir()), process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert list(project.archive.parent.iterdir()) == []
    assert aws.keys() == []


def test_a_damaged_archive_is_refused_with_the_remedies(project, aws):
    project.archive.write_bytes(b"damaged")
    line = project.error_line(UPLOAD, FOLDER)
    assert "delete it to download it again" in line
    assert f"CIFAR10_MD5={hashlib.md5(b'damaged').hexdigest()}" in line
    assert aws.keys() == []


def test_only_cifar_10_is_accepted_by_default(project):
    line = project.error_line(UPLOAD, FOLDER, CIFAR10_MD5="")
    assert "expected c58f30108f718f92721af3b95e74349a;" in line


def test_a_missing_bucket_is_not_created(project, aws):
    line = project.error_line(UPLOAD, "s3://missing-bucket/datasets")
    assert "NoSuchBucket" in line and line.endswith("; create the bucket with aws s3 mb, or correct its name")
    assert [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]] == [BUCKET]


def test_a_bucket_in_a_different_region_is_refused(project):
    line = project.error_line(UPLOAD, FOLDER, AWS_REGION="us-west-2")
    assert f"{BUCKET} is in {REGION}" in line and line.endswith(f"set AWS_REGION={REGION}")


def test_a_bucket_with_the_old_location_eu_is_in_eu_west_1(project, aws):
    s3 = aws.client("s3", region="eu-west-1")
    s3.create_bucket(Bucket="old-bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3_backends[ACCOUNT]["aws"].buckets["old-bucket"].region_name = "EU"  # moto's API does not accept it
    assert project.error_line(UPLOAD, "s3://old-bucket").endswith("set AWS_REGION=eu-west-1")
    assert project.run(UPLOAD, "s3://old-bucket", AWS_REGION="eu-west-1").startswith("uploaded")


@pytest.mark.parametrize(
    "arguments", [(), (FOLDER, FOLDER), ("/datasets/cifar-10",), ("s3://",), ("s3://<my-bucket>/x",), ("--help",)]
)
def test_wrong_arguments_are_reported_with_the_expected_ones(project, arguments):
    line = project.error_line(UPLOAD, *arguments)
    expected = "expected ./upload-cifar-10.sh s3://<my-bucket>/<folder>"
    assert line == f"{expected}, got '{' '.join(arguments)}'; is S3_PATH set?"
