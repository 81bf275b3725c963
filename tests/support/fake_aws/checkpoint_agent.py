"""A simulation of SageMaker's checkpoint agent, which copies to a folder instead of S3.

It does not imitate the real order and delays of the copies, which are not documented: both are random here.
"""

import contextlib
import random
import shutil
import time
from pathlib import Path
from threading import Event, Thread

MAX_GROWTHS = 10  # number of intervals in which a file grows, after which the agent gives up


class CheckpointAgent:
    """The agent of one host. It copies `store` to `folder` before the host starts, and changes back while it runs.

    The agent does not know when a file is complete. It copies a changed file in parts, opening it for each part, up to
    the size that it saw first; the new file appears in the store once all parts are read. It also copies deletions.
    Some copies are slow. While it copies NAME, NAME.sagemaker-uploading exists beside it, and at the end for a moment
    NAME.sagemaker-uploaded; it ignores names with `.sagemaker-`. At a file that keeps growing, the agent stops for good
    without an error.

    Args:
        folder: The checkpoint folder of the host; created if missing.
        store: The folder that stands for the checkpoint path in S3.
        gone_file: A file that appears when the host is lost; the agent then stops copying at once.
        seconds: The longest delay of a slow copy.
        growth_seconds: The interval between checks for growth; a file must be written within ten of them.
    """

    def __init__(self, folder: Path, store: Path, gone_file: Path, seconds: float = 1.0, growth_seconds: float = 1.0):
        self.folder, self.store, self.gone_file, self.seconds = folder, store, gone_file, seconds
        self.growth_seconds = growth_seconds
        self.gave_up_at = ""
        self._rng = random.Random(0)
        self._finishing = Event()
        self._growths: dict[str, set[int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.fetch()
        self._copied = self._scan()
        self._thread = Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Copies the remaining changes, unless the host is lost, and stops the agent."""
        self._finishing.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def fetch(self) -> None:
        self.store.mkdir(exist_ok=True)
        shutil.copytree(self.store, self.folder, dirs_exist_ok=True)

    def put(self, name: str, content: bytes) -> None:
        (self.store / name).write_bytes(content)

    def delete(self, name: str) -> None:
        (self.store / name).unlink(missing_ok=True)

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Returns the size and modification time of each file by name."""
        states = {}
        for path in self.folder.iterdir():
            if ".sagemaker-" in path.name:
                continue
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                states[path.name] = state.st_size, state.st_mtime_ns
        return states

    def _work(self) -> None:
        while not self.gone_file.exists() and not self.gave_up_at:
            is_last, seen = self._finishing.is_set(), self._scan()
            for name in self._copied.keys() - seen.keys():
                self.delete(name)
                del self._copied[name]
            changed = [name for name in seen if self._copied.get(name) != seen[name]]
            self._rng.shuffle(changed)
            for name in changed:
                if name in self._copied and seen[name][0] > self._copied[name][0]:
                    growths = self._growths.setdefault(name, set())
                    growths.add(int(time.monotonic() / self.growth_seconds))
                    if len(growths) == MAX_GROWTHS:
                        self.gave_up_at = name
                        return
                if self._copy(name, seen[name][0]):
                    self._copied[name] = seen[name]
            if is_last and not changed:
                return
            time.sleep(0.01)

    def _copy(self, name: str, size: int) -> bool:
        """Copies a file and returns whether the store has it."""
        uploading, uploaded = (self.folder / f"{name}.sagemaker-{state}" for state in ("uploading", "uploaded"))
        uploading.touch()
        is_copied = self._copy_parts(name, size)
        if is_copied:
            uploaded.touch()
        uploading.unlink(missing_ok=True)
        uploaded.unlink(missing_ok=True)
        return is_copied

    def _copy_parts(self, name: str, size: int) -> bool:
        parts, part_size = [], max(4096, size // 8)
        slow_part = self._rng.randrange(24)  # in a third of the copies, one of the eight parts
        for number, start in enumerate(range(0, size, part_size)):
            if number == slow_part and not self._finishing.is_set():
                self._finishing.wait(self._rng.uniform(0, self.seconds))
            try:
                with open(self.folder / name, "rb") as file:
                    file.seek(start)
                    parts.append(file.read(min(part_size, size - start)))
            except FileNotFoundError:
                return False
            if self.gone_file.exists():
                return False
        self.put(name, b"".join(parts))
        return True
