"""The files of one model, held from the moment they are judged until onnxruntime has read them.

A name can be given to another file at any moment, and so can the name of a folder above it. So each
name is followed once. The .onnx file is copied into memory that nothing can write to any more, and
that copy is what is judged and what onnxruntime is given; weights beside it are opened relative to
a held folder, and onnxruntime opens them by the descriptor. They are not copied: their numbers are
not judged, and their pages stay those of the system's file cache, as when it reads them by name.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from causal_onnx.runtime.artifact.artifact import Artifact, name_of
from causal_onnx.runtime.artifact.header import read_header
from causal_onnx.runtime.artifact.protobuf import (
    Piece,
    WindowedFile,
    field_bytes,
    fields,
    rewritten,
)
from causal_onnx.runtime.errors import ArtifactError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: it is asked for where there are descriptors only
    fcntl = None  # type: ignore[assignment]

__all__ = ["DESCRIPTORS", "FOLDER_OPTION", "NO_FOLDER", "Held", "NotHeldError", "identity"]

DESCRIPTORS = Path("/proc/self/fd")
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
NO_FOLDER = f"{os.devnull}/none"

_NOT_EVERYWHERE = ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY")
# O_NONBLOCK: opening a named pipe does not wait.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in _NOT_EVERYWHERE)
_HOLDS_FOLDERS = {os.open, os.stat} <= os.supports_dir_fd
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE; fcntl of musl lacks the names


class NotHeldError(Exception):
    """A file beside the model cannot be held: what was found, and what to do about it."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


@dataclass(frozen=True, slots=True)
class _Beside:
    descriptor: int
    found: os.stat_result


class Held:
    """A model's files; a context that lets go of them at its end."""

    def __init__(self, location: Path | bytes, *, max_bytes: int, copied: bool = True) -> None:
        """Open a model and copy it, unless it is larger than `max_bytes`; see `size`.

        Args:
            location: The model.
            max_bytes: The most that is copied.
            copied: False: it is judged where it lies, and no session is made of it;
                `check_unchanged` says afterwards whether it was one file all the time.

        Raises:
            FileNotFoundError: There is no such file.
            ArtifactError: It is not a regular file, or it was written to while it was read.
        """
        self._stack = contextlib.ExitStack()
        self._folder: int | Path | None = None
        """Its descriptor; where a system has none of folders, its path."""
        self._names: dict[str, _Beside] = {}
        self._model: int | bytes = b""
        self._copied = copied
        self.size = 0
        """Bytes of the .onnx file."""
        self.largest_batch: int | None = None
        """The most batch rows of a call with which the model was found to be harmless; None: any
        number, or it was not judged."""
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            self._name = name_of(location)
            self.stream: BinaryIO = io.BytesIO()
            if isinstance(location, bytes):
                self.size, self._model = len(location), location
                self.stream = io.BytesIO(location)
            else:
                self._open(location, max_bytes)
            undo.pop_all()

    def _open(self, location: Path, max_bytes: int) -> None:
        self._folder = location.parent
        if _HOLDS_FOLDERS:
            path_only = getattr(os, "O_PATH", os.O_RDONLY)  # a folder may be entered but not listed
            flags = path_only | os.O_DIRECTORY | os.O_CLOEXEC
            self._folder = self._closing(os.open(location.parent, flags))
        path, folder = self._at(location.name)
        self._file = self._closing(os.open(path, _FLAGS, dir_fd=folder))
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{location} is not a regular file: pass the .onnx file")
        self.size = found.st_size
        if self.size > max_bytes:
            return
        self._model = self._copy(self._file, self.size) if self._copied else self._file
        self._identity = identity(found)
        if identity(os.fstat(self._file)) != self._identity:
            raise ArtifactError(
                f"{location} changed while it was being loaded; load it again when nothing writes "
                "to it"
            )
        self.stream = (
            io.BytesIO(self._model)
            if isinstance(self._model, bytes)
            else self._stack.enter_context(os.fdopen(os.dup(self._model), "rb", buffering=0))
        )

    @classmethod
    def inherited(cls, name: str, model: int, files: Mapping[str, int]) -> Held:
        """What another process held, and gave this one: the opposite of `descriptors`."""
        held = cls(b"", max_bytes=0)
        held._name, held._model = name, model
        held.stream = held._stack.enter_context(os.fdopen(os.dup(model), "rb", buffering=0))
        held.size = os.fstat(model).st_size
        for beside, descriptor in files.items():
            held._names[beside] = _Beside(descriptor, os.fstat(descriptor))
        return held

    def descriptors(self) -> tuple[int, dict[str, int]]:
        """Of the model, and of each file beside it.

        Raises:
            ValueError: This system has none that another process could open.
        """
        if not _has_descriptors():
            raise ValueError("isolated_trial needs Linux, with /proc")
        if isinstance(self._model, bytes):
            content = self._model
            self._model = self._new_memory()
            with os.fdopen(os.dup(self._model), "wb") as out:
                out.write(content)
            fcntl.fcntl(self._model, _add_seals(), _SEALS)
        return self._model, {name: beside.descriptor for name, beside in self._names.items()}

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return self.size + sum(beside.found.st_size for beside in self._names.values())

    @property
    def identities(self) -> dict[str, tuple[int, ...]]:
        """What tells each file from every other, and from itself after a change, by name."""
        found = {name: identity(beside.found) for name, beside in self._names.items()}
        if self._folder is not None:
            found[Path(self._name).name] = self._identity
        return found

    def check_header(self, artifact: Artifact) -> None:
        """Check that what is held is the model whose header was read before.

        Raises:
            ArtifactError: It is another.
        """
        # The contract that the caller has is of what was read under this name before.
        if read_header(self.stream, name=self._name) != artifact.header:
            raise ArtifactError(f"{self._name} changed while it was being loaded; load it again")

    @property
    def files(self) -> frozenset[str]:
        """The names of the files beside the model that are held."""
        return frozenset(self._names)

    def beside(self, name: str, *, allow_link: bool) -> os.stat_result:
        """Open the file `name` in the model's folder and hold it.

        Args:
            name: A plain name, without folders.
            allow_link: It may be a symbolic link into the folder where the model itself lies.

        Raises:
            NotHeldError: It is a link of either kind, or no regular file.
            OSError: It cannot be opened.
        """
        if name in self._names:
            return self._names[name].found
        if self._folder is None:
            raise NotHeldError(
                "a file beside it, which must be there; bytes have none",
                "load it from its path",
            )
        path, folder = self._at(name)
        found = os.stat(path, dir_fd=folder, follow_symlinks=False)
        flags = _FLAGS
        is_link = stat.S_ISLNK(found.st_mode)
        if not is_link:
            flags |= getattr(os, "O_NOFOLLOW", 0)
            _check_file(found, name)  # before it is opened: a device may do something by that
        elif not allow_link:
            raise NotHeldError(
                "which is a symbolic link",
                "put the file itself there, or, in a Hugging Face cache, "
                "limits=Limits(allow_links=True)",
            )
        descriptor = self._closing(os.open(path, flags, dir_fd=folder))
        found = os.fstat(descriptor)
        _check_file(found, name)
        if is_link:
            self._check_target(descriptor)
        self._names[name] = _Beside(descriptor, found)
        return found

    @contextlib.contextmanager
    def lent_to(self, options: Any) -> Iterator[str | bytes]:
        """Let a session of these options read what is held: gives what to make it of.

        Raises:
            ArtifactError: Something wrote to a file beside the model, before this or inside.
        """
        with contextlib.ExitStack() as leases:
            for beside in self._names.values():
                leases.enter_context(_writers_waiting(beside.descriptor))
            self.check_unchanged()
            try:
                with self._give(options) as source:
                    yield source
            finally:
                self.check_unchanged()  # which explains an error of onnxruntime's too

    @contextlib.contextmanager
    def _give(self, options: Any) -> Iterator[str | bytes]:
        model = self._model
        if isinstance(model, bytes):
            # Without a folder, the names in the bytes would be looked for in the current one.
            options.add_session_config_entry(FOLDER_OPTION, NO_FOLDER)
            contents = [_content(beside) for beside in self._names.values()]
            if contents:
                options.add_external_initializers_from_files_in_memory(
                    list(self._names), contents, [len(content) for content in contents]
                )
            yield model  # while the contents are there
            return
        if self._names:
            # onnxruntime takes files below one folder alone, and a descriptor leads anywhere. That
            # the model names no others was checked, and all names are replaced.
            options.add_session_config_entry(FOLDER_OPTION, "/")
            model = self._relocated(model)
        yield f"{DESCRIPTORS}/{model}"

    def check_unchanged(self) -> None:
        """Check that what is not copied is as it was when it was opened.

        Raises:
            ArtifactError: Something wrote to it.
        """
        held = [(name, one.descriptor, identity(one.found)) for name, one in self._names.items()]
        if not self._copied:
            held.append(("it", self._file, self._identity))
        for name, descriptor, before in held:
            if identity(os.fstat(descriptor)) != before:
                raise ArtifactError(
                    f"{self._name}: {name} changed while it was being loaded; load it again when "
                    "nothing writes to it"
                )

    def named(self, text: str) -> str:
        """A message of onnxruntime's with the names of the files in place of their descriptors."""
        for name, beside in self._names.items():
            text = text.replace(f"{DESCRIPTORS}/{beside.descriptor}", name)
        start, found, rest = text.partition(f"{DESCRIPTORS}/")
        return f"{start}{self._name}{rest.lstrip('0123456789')}" if found else text

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _at(self, name: str) -> tuple[str | Path, int | None]:
        """The path of a file in the folder, and the descriptor that it is relative to."""
        if isinstance(self._folder, int):
            return name, self._folder
        assert self._folder is not None
        return self._folder / name, None

    def _closing(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _copy(self, file: int, size: int) -> int | bytes:
        """The content of a file, in memory that cannot change."""
        if not _has_descriptors():
            with os.fdopen(os.dup(file), "rb", buffering=0) as stream:
                return stream.read(size)
        copy = self._new_memory()
        start = 0
        while start < size:
            start += (count := os.sendfile(copy, file, start, size - start))
            if not count:  # it was cut off meanwhile, which its size shows
                break
        fcntl.fcntl(copy, _add_seals(), _SEALS)
        return copy

    def _new_memory(self) -> int:
        return self._closing(os.memfd_create("causal-onnx", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))

    def _relocated(self, model: int) -> int:
        """A copy of the model in which the names of files are those of their descriptors."""
        places = {
            name.encode(): f"{DESCRIPTORS}/{beside.descriptor}"[1:].encode()
            for name, beside in self._names.items()
        }
        copy = self._new_memory()
        with (
            os.fdopen(os.dup(copy), "wb") as out,
            os.fdopen(os.dup(model), "rb", buffering=0) as file,
        ):
            for piece in _replaced(WindowedFile(file), places):
                if isinstance(piece, bytes):
                    out.write(piece)
                    continue
                out.flush()
                start, end = piece
                while start < end:
                    start += os.sendfile(out.fileno(), model, start, end - start)
        fcntl.fcntl(copy, _add_seals(), _SEALS)
        return copy

    def _check_target(self, descriptor: int) -> None:
        """That a file lies in the folder of the model, when links are followed for both."""
        if not _has_descriptors():
            raise NotHeldError("a symbolic link, which this system cannot follow safely")
        target, model = ((DESCRIPTORS / str(x)).readlink() for x in (descriptor, self._file))
        if target.parent != model.parent:
            raise NotHeldError(
                f"a link to {target}, which is not in the folder of the model, {model.parent}"
            )


def _has_descriptors() -> bool:
    """Whether a descriptor has a name by which it can be opened, as on Linux."""
    return hasattr(os, "memfd_create") and DESCRIPTORS.is_dir()


def _add_seals() -> int:
    return getattr(fcntl, "F_ADD_SEALS", 1033)


def _check_file(found: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotHeldError("which is not a regular file")
    if found.st_nlink > 1:
        raise NotHeldError(
            f"which is one of {found.st_nlink} hard links and may be a file from elsewhere",
            f"make it a file of its own: cp {name} x && mv x {name}",
        )


def _content(beside: _Beside) -> bytes:
    with os.fdopen(os.dup(beside.descriptor), "rb", buffering=0) as file:
        file.seek(0)
        return file.read()


def identity(found: os.stat_result) -> tuple[int, ...]:
    """What is another number after a file was written to, or is another file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextlib.contextmanager
def _writers_waiting(descriptor: int) -> Iterator[None]:
    """Let whoever opens the file for writing wait until the end, where we may ask for that.

    onnxruntime maps these files into memory: one that another process cuts off meanwhile would end
    this one with SIGBUS. Linux grants the lease to the owner of a file that nobody has open for
    writing, and takes it away after 45 s. Source: fcntl(2), F_SETLEASE.
    """
    with contextlib.suppress(AttributeError, OSError):
        # What the kernel says when somebody waits; by default it would end the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13
_KEY, _VALUE = 1, 2


def _replaced(source: WindowedFile, places: Mapping[bytes, bytes]) -> list[Piece]:
    """A model with other names of the files that its weights lie in."""

    def renamed(start: int, end: int) -> list[Piece]:
        return _entry(source, start, end, places)

    return rewritten(source, (_GRAPH, _INITIALIZER, _EXTERNAL_DATA), renamed)


def _entry(
    source: WindowedFile, start: int, end: int, places: Mapping[bytes, bytes]
) -> list[Piece]:
    """One key of a tensor's external data and its value."""
    texts = {_KEY: b"", _VALUE: b""}
    for number, _, value, length, _ in fields(source, start, end):
        texts[number] = source.read(value, length)
    if texts[_KEY] != b"location":
        return [(start, end)]
    texts[_VALUE] = places[texts[_VALUE]]
    return [field_bytes(number, text) for number, text in texts.items()]
