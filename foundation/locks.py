"""One writer a folder: a second command that would write there is refused, with the first one's host and process named.

`<folder>/.lock` names the owner. The kernel's lock on it ends with the process, however that ends. File systems without locks,
and other machines where locks are each machine's own, go by the owner's heartbeat: the file's time, set every few seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from foundation.errors import OneLineError

NAME = ".lock"
HEARTBEAT = 5.0  # seconds between two
STALE = 60.0  # seconds without one: the owner, on another machine, is dead
_SETTLE = 0.5  # seconds, without locks of the kernel: of two that take a lock at once the later writer has it
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class LockError(OneLineError):
    """Another process writes in a folder, or nothing can be written there: one line."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only process that writes in `folder`, which is made where there is none. May be nested in one process.

    Raises:
        LockError: another process has it, or the folder cannot be written.
    """
    hold_folder(folder)
    try:
        yield
    finally:
        release_folder(folder)


def hold_folder(folder: Path) -> None:
    """`folder_lock` until `release_folder`, or for as long as this process lives."""
    key = Path(folder).absolute()
    lock = _held.get(key)
    if lock is None or lock.pid != os.getpid():
        lock = _held[key] = _Lock(key / NAME)
    lock.count += 1


def release_folder(folder: Path) -> None:
    """End one `hold_folder`."""
    key = Path(folder).absolute()
    lock = _held[key]
    lock.count -= 1
    if not lock.count:
        del _held[key]
        lock.release()


class _Lock:
    def __init__(self, path: Path) -> None:
        self.path, self.pid, self.count = path, os.getpid(), 0
        self.made = [folder for folder in path.parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = self._take()
        except (FileExistsError, NotADirectoryError):
            raise LockError(f"{path.parent} is not a folder; move that file away, or write elsewhere") from None
        except OSError as error:
            room = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise LockError(f"nothing can be written in {path.parent}: {error.strerror}{room}") from None
        self.ended = threading.Event()
        threading.Thread(target=self._beat, name=f"heartbeat of {path}", daemon=True).start()

    def _take(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                by_kernel = self._lock(descriptor)
                if not _is_file_of(descriptor, self.path):  # its owner ended, and removed it, in between
                    os.close(descriptor)
                    continue
                self._wait_for_the_dead(descriptor, by_kernel)
                own = json.dumps({"host": socket.gethostname(), "pid": self.pid, "started": _started(self.pid)})
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, own.encode(), 0)
                if not by_kernel:
                    time.sleep(_SETTLE)
                    if os.pread(descriptor, 4096, 0) != own.encode():
                        self._refuse(descriptor)
                return descriptor
            except BaseException:
                os.close(descriptor)
                raise

    def _lock(self, descriptor: int) -> bool:
        """Whether the kernel gave the lock; False where the file system has none."""
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._refuse(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def _wait_for_the_dead(self, descriptor: int, by_kernel: bool) -> None:
        """Return once the owner that the file names is known to be dead."""
        owner = _owner(descriptor)
        if not owner:
            return
        if owner.get("host") == socket.gethostname():
            # This machine's kernel would not have given a living owner's lock.
            if not by_kernel and _started(owner.get("pid")) == owner.get("started"):
                self._refuse(descriptor)
            return
        seen = os.fstat(descriptor).st_mtime_ns
        age = time.time() - seen / 1e9
        if age > STALE:
            return
        print(f"{self.path.parent}: {_named(owner)} was writing here; waiting to see whether it has ended", flush=True)
        until = time.monotonic() + STALE
        while time.monotonic() < until:
            time.sleep(HEARTBEAT / 5)
            if os.fstat(descriptor).st_mtime_ns != seen:
                self._refuse(descriptor)

    def _refuse(self, descriptor: int) -> None:
        raise LockError(
            f"{_named(_owner(descriptor))} is writing in {self.path.parent}; wait until it has ended, end it, or write elsewhere"
        )

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.descriptor)

    def release(self) -> None:
        self.ended.set()
        if self.pid == os.getpid():
            with contextlib.suppress(OSError):  # the folder may be gone
                if _is_file_of(self.descriptor, self.path):
                    self.path.unlink()
            os.close(self.descriptor)
            with contextlib.suppress(OSError):  # a command that was refused after all leaves no empty folder
                for folder in self.made:
                    folder.rmdir()


def _owner(descriptor: int) -> dict:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):  # just made, or its owner is writing it
        return {}
    return owner if isinstance(owner, dict) else {}


def _named(owner: dict) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"


def _started(pid: object) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where there is none of that number."""
    try:
        return Path(f"/proc/{int(str(pid))}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return None


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


_held: dict[Path, _Lock] = {}


@atexit.register
def _release_all() -> None:
    for lock in _held.values():
        lock.release()
    _held.clear()
