"""SageMaker's agent that copies checkpoints, without SageMaker: a folder plays their path in S3."""

import contextlib
import random
import shutil
import time
from pathlib import Path
from threading import Event, Thread

MAX_GROWTHS = 10  # intervals in which one file has grown, after which the agent gives up


class CheckpointAgent:
    """The agent of one host, which has copied everything from `store` to `folder` before the host starts.

    It knows nothing of how files are written. What has changed it copies part by part, opening the file for each, up to
    the size that it has seen; S3 has the new file once all parts are there. What is deleted it deletes. Now and then
    it takes its time. At a file that keeps growing it stops for good, without a word.

    Args:
        folder: The host's checkpoint folder, which it makes.
        store: What it is copied to.
        is_gone: A file that appears when the host vanishes, at which the agent leaves things as they are.
        seconds: How long it takes when it takes its time.
        growth_seconds: The intervals in which it looks whether a file still grows; one is written in less than ten.
    """

    def __init__(self, folder: Path, store: Path, is_gone: Path, seconds: float = 1.0, growth_seconds: float = 1.0):
        self.folder, self.store, self.is_gone, self.seconds = folder, store, is_gone, seconds
        self.growth_seconds = growth_seconds
        self.gave_up_at = ""
        self._numbers = random.Random(0)
        self._end = Event()
        self._growths: dict[str, set[int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.fetch()
        self._copied = self._look()
        self._thread = Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Lets it copy what is there, unless the host has vanished, and ends it."""
        self._end.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def fetch(self) -> None:
        self.store.mkdir(exist_ok=True)
        shutil.copytree(self.store, self.folder, dirs_exist_ok=True)

    def put(self, name: str, content: bytes) -> None:
        (self.store / name).write_bytes(content)

    def delete(self, name: str) -> None:
        (self.store / name).unlink(missing_ok=True)

    def _look(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file."""
        states = {}
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                states[path.name] = state.st_size, state.st_mtime_ns
        return states

    def _work(self) -> None:
        while not self.is_gone.exists() and not self.gave_up_at:
            is_last, seen = self._end.is_set(), self._look()
            for name in self._copied.keys() - seen.keys():
                self.delete(name)
                del self._copied[name]
            changed = [name for name in seen if self._copied.get(name) != seen[name]]
            self._numbers.shuffle(changed)
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
        """Whether the store has the file now."""
        parts, part_size = [], max(4096, size // 8)
        slow_part = self._numbers.randrange(24)  # one of the eight in a third of the copies
        for number, start in enumerate(range(0, size, part_size)):
            if number == slow_part and not self._end.is_set():
                self._end.wait(self._numbers.uniform(0, self.seconds))
            try:
                with open(self.folder / name, "rb") as file:
                    file.seek(start)
                    parts.append(file.read(min(part_size, size - start)))
            except FileNotFoundError:
                return False
            if self.is_gone.exists():
                return False
        self.put(name, b"".join(parts))
        return True
