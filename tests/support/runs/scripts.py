"""The scripts of the cloud, as processes in a copy of the project."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fake_aws.aws import BUCKET
from runs.programs import copy_project, executable

AWS_CLI = Path(sys.executable).parents[1] / "aws/bin"
ARCHIVE = "cifar-10-python.tar.gz"
BUILD, URI, PUSH = "docker/build-image.sh", "docker/image-uri.sh", "docker/push-image.sh"
UPLOAD = "upload-cifar-10.sh"
FOLDER = f"s3://{BUCKET}/datasets/cifar-10"


class Project:
    """A copy of the files that the scripts use, with a small archive in .cache, and the environment of a user."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = copy_project(folder, "docker", UPLOAD)
        self.archive = folder / ".cache" / ARCHIVE
        self.archive.parent.mkdir()
        self.environment = environment | {"PATH": f"{AWS_CLI}:{os.environ['PATH']}"}
        self.change_archive(b"images")

    def change_archive(self, content: bytes) -> None:
        """Replaces the archive and the checksum that the scripts expect."""
        self.archive.write_bytes(content)
        self.environment["CIFAR10_MD5"] = hashlib.md5(content).hexdigest()

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        """Starts a script from a different folder."""
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen([self.folder / script, *arguments], env=self.environment | variables, cwd="/", **output)

    def run(self, script: str, *arguments: str, **variables: str) -> str:
        """Returns the output of a script, which must succeed without output on stderr."""
        process = self.start(script, *arguments, **variables)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, ""), stderr
        return stdout.removesuffix("\n")

    def error_line(self, script: str, *arguments: str, **variables: str) -> str:
        """Returns the only line on stderr of a script that must exit with code 2 and leave all files as they are."""
        files = sorted(self.folder.rglob("*"))
        process = self.start(script, *arguments, **variables)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (2, ""), stderr
        assert sorted(self.folder.rglob("*")) == files
        (line,) = stderr.splitlines()
        script, line = line.split(": error: ", 1)
        assert script in [Path(name).name for name in (BUILD, URI, PUSH, UPLOAD)]
        return line

    def path_without(self, *missing: str) -> str:
        """Returns a PATH with the commands that the scripts call, except these."""
        folder = self.folder / f"without-{'-'.join(missing)}"
        folder.mkdir()
        for command in {"env", "bash", "dirname", "tr", "python3", "aws"} - set(missing):
            (folder / command).symlink_to(shutil.which(command, path=self.environment["PATH"]))
        return str(folder)

    def path_with(self, command: str, script: str) -> str:
        """Returns a PATH in which a command is this shell script."""
        folder = executable(self.folder / f"with-{command}" / command, script).parent
        return f"{folder}:{self.environment['PATH']}"
