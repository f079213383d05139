"""Write files and folders whole or not at all: as a draft beside the target, moved when it is done.

A draft has a name of its own, and whoever writes it holds a lock on it, which the system releases
when the process ends in whatever way. So the next to write to the same place removes what a killed
process left there, and nothing that another is still writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: nothing is locked, so nothing is removed either
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_target", "draft_folder", "exchange", "locked", "sync", "write_whole"]

_LONGEST_NAME = 200
"""Bytes of the target's name in that of its draft; file systems allow 255 in all."""


@contextlib.contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which only this process uses, and which is gone afterwards.

    What it is for is moved out of it inside. Abandoned drafts of the same target are removed.

    Raises:
        OSError: The place is not writable.
    """
    _sweep(target)
    while True:
        folder = _draft_of(target)
        folder.mkdir(mode=0o700)
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            if fcntl is not None:
                try:
                    descriptor = stack.enter_context(_opened(folder))
                except FileNotFoundError:
                    continue
                if not _hold(descriptor, folder):
                    continue
            yield folder
            return


def write_whole(target: Path, content: bytes) -> None:
    """Write a file so that each reader sees all of the old one or all of the new one.

    After a loss of power, too. Abandoned drafts of the same target are removed.

    Raises:
        OSError: The place is not writable, or there is no room.
    """
    _sweep(target)
    with contextlib.ExitStack() as stack:
        descriptor, draft = _new_file(stack, target)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        if draft is None:
            # It has a name for as long as these calls take, and is locked already. Without a
            # descriptor of a folder, Python calls what does not follow the link in /proc.
            draft = _draft_of(target)
            stack.callback(draft.unlink, missing_ok=True)
            os.link(f"/proc/self/fd/{descriptor}", draft, src_dir_fd=descriptor)
        draft.replace(target)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would outlast a loss of power."""
    if fcntl is not None:  # elsewhere it takes a descriptor for writing
        with _opened(path) as descriptor:
            os.fsync(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process, and one thread of it, at a time change which files a folder holds."""
    if fcntl is None:
        yield
        return
    with _opened(folder) as descriptor:
        _try_lock(descriptor)
        yield


def check_target(target: Path) -> None:
    """Find out whether a file can be written, before hours of work for it; nothing is left there.

    Raises:
        OSError: It cannot; the message names the reason.
    """
    missing: list[Path] = []
    try:
        missing += [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(target) as draft:
            (draft / target.name).touch()
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {target}: {error.strerror or error}; choose another place",
        ) from error
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def exchange(one: Path, other: Path) -> bool:
    """Let two folders have each other's name, in one step; False where the system cannot.

    Source: renameat2(2), Linux 3.15 and glibc 2.28.
    """
    function = _renameat2()
    if function is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if function(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _renameat2() -> Any:
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    path, number = ctypes.c_char_p, ctypes.c_int
    function.argtypes = (number, path, number, path, ctypes.c_uint)
    function.restype = number
    return function


def _draft_of(target: Path) -> Path:
    return target.with_name(f".{_stem(target.name)}.{secrets.token_hex(8)}.part")


def _stem(name: str) -> str:
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 8]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def _new_file(stack: contextlib.ExitStack, target: Path) -> tuple[int, Path | None]:
    """A locked file for writing, and its draft's name; None: it has none, and is gone with us."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is not None and Path("/proc/self/fd").is_dir():
        try:
            descriptor = os.open(target.parent, flag | os.O_RDWR, 0o666)
        except OSError as error:
            # What a file system without such files says, and a kernel that knows none.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        else:
            stack.callback(os.close, descriptor)
            _try_lock(descriptor)
            return descriptor, None
    while True:
        draft = _draft_of(target)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        stack.callback(draft.unlink, missing_ok=True)
        stack.callback(os.close, descriptor)
        if _hold(descriptor, draft):
            return descriptor, draft


def _hold(descriptor: int, path: Path) -> bool:
    """Lock a new draft; False where another took it for abandoned before that."""
    _try_lock(descriptor)
    return _is_at(descriptor, path)


def _sweep(target: Path) -> None:
    """Remove the drafts of `target` that nobody holds."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(f".{_stem(target.name)}.") + r"[0-9a-f]{16}\.part")
    try:
        found = [item for item in target.parent.iterdir() if pattern.fullmatch(item.name)]
    except OSError:
        return  # whoever writes there will be told
    for item in found:
        # It may be gone meanwhile, or belong to another user.
        with contextlib.suppress(OSError), _opened(item, os.O_NOFOLLOW) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, item):
                continue
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()


def _try_lock(descriptor: int) -> None:
    if fcntl is not None:
        # Where there are no locks, nobody can take it for abandoned either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
