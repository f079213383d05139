"""Keep a session as onnxruntime prepared it for this processor, and map it into memory next time.

Making a session of a language model means to copy its weights several times: out of the file, into
the layout that the processor's kernels read, onto huge pages. onnxruntime can write what came of it
into a file, and map that file into memory afterwards, so that nothing is copied and all processes
on one machine share the pages. It lays the weights out again even so, compares the result with what
the file holds, and takes the file's where they are equal: packed for another processor, they are
not used.

What is kept is a graph that no scan has judged, so it lies in a folder where only this user writes,
is used for the very files, onnxruntime, processor and settings that it was made with, and only as
it was written.
Source: `session.save_external_prepacked_constant_initializers` in
https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_onnx.runtime.artifact.held import DESCRIPTORS, identity
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json
from causal_onnx.runtime.session.ort import import_onnxruntime

__all__ = ["PreparedFolder", "PreparedSession", "Recipe", "saving_settings"]

FORMAT = 1
MODEL, WEIGHTS, RECORD = "session.onnx", "weights.data", "record.json"
EXTERNAL_FROM_BYTES = 1024

PROCESSOR = Path("/proc/cpuinfo")
_KINDS = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision",
)  # fmt: skip
"""Lines of /proc/cpuinfo that say which instructions there are; the others change while it runs."""
_INSTRUCTIONS = ("flags", "Features")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that a prepared session depends on."""

    model: str
    """The absolute path of the file."""
    files: Mapping[str, tuple[int, ...]]
    """What tells the model, and each file beside it, from every other and from itself changed."""
    settings: Mapping[str, str]
    """Those of the session that change what it computes, or with what."""
    onnxruntime: Mapping[str, Any]
    processor: tuple[str, ...]

    @classmethod
    def of(
        cls, model: Path, files: Mapping[str, tuple[int, ...]], settings: Mapping[str, str]
    ) -> Recipe:
        """That of a model on this machine.

        Raises:
            ValueError: This system does not say which instructions its processor has.
        """
        return cls(
            model=str(model.resolve()),
            files=files,
            settings=settings,
            onnxruntime=_onnxruntime(),
            processor=_processor(),
        )

    @property
    def document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "files": {name: list(found) for name, found in sorted(self.files.items())},
            "settings": dict(sorted(self.settings.items())),
            "onnxruntime": dict(self.onnxruntime),
            "processor": list(self.processor),
        }

    @property
    def name(self) -> str:
        """What its folder is called. Two may have one name: what they are is compared in full."""
        text = json.dumps(self.document, sort_keys=True).encode()
        return f"{zlib.crc32(text):08x}{zlib.adler32(text):08x}"


class PreparedSession:
    """A session that was kept; a context that lets go of it. `lent_to` is as that of `Held`."""

    def __init__(self, descriptor: int, files: Mapping[str, tuple[int, ...]], name: str) -> None:
        self._descriptor, self._files, self._name = descriptor, files, name

    @contextlib.contextmanager
    def lent_to(self, options: Any) -> Iterator[str]:
        """Let a session of these options read it: gives the path to make it of.

        Raises:
            ArtifactError: Something wrote to it, before this or inside.
        """
        # What it holds has been through all of the optimiser, for these very settings.
        options.graph_optimization_level = (
            import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        self._check_unchanged()
        try:
            yield f"{DESCRIPTORS}/{self._descriptor}/{MODEL}"
        finally:
            self._check_unchanged()  # which explains an error of onnxruntime's too

    def named(self, text: str) -> str:
        """A message of onnxruntime's with the name of the model in place of the descriptor."""
        return text.replace(f"{DESCRIPTORS}/{self._descriptor}/{MODEL}", self._name)

    def _check_unchanged(self) -> None:
        if _files_in(self._descriptor, self._files) != self._files:
            raise ArtifactError(
                f"{self._name}: its prepared session was written to, or is gone; load it again"
            )

    def __enter__(self) -> PreparedSession:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class PreparedFolder:
    """A folder of prepared sessions, in which only this user writes.

    What is needed to write is imported then: it brings libraries of 4 MB.
    """

    def __init__(self, path: Path) -> None:
        """Take a folder, or make it.

        Raises:
            ValueError: Others may write there, or this system cannot tell.
            OSError: It cannot be made.
        """
        if not hasattr(os, "geteuid") or not DESCRIPTORS.is_dir():
            raise ValueError("prepared needs Linux, with /proc; load without prepared")
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path.resolve()
        if (found := _not_own(self._path.stat())) is not None:
            raise ValueError(
                f"prepared must be a folder in which only this user writes, and {path} {found}; "
                f"choose another one, or take the right away: chmod go-w {path}"
            )

    def find(self, recipe: Recipe, name: str) -> PreparedSession | None:
        """The session kept for `recipe`; None where there is none that is whole and unchanged.

        Args:
            recipe: What it must have been made with.
            name: How messages call the model.
        """
        return self._opened(self._path / recipe.name, recipe, name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time prepare."""
        from causal_onnx.runtime.artifact.drafts import locked  # noqa: PLC0415

        with locked(self._path):
            yield

    @contextlib.contextmanager
    def draft(self, recipe: Recipe) -> Iterator[Path]:
        """A new folder to write a session into; kept if `keep` is called inside."""
        from causal_onnx.runtime.artifact.drafts import draft_folder  # noqa: PLC0415

        with draft_folder(self._path / recipe.name) as folder:
            inner = folder / recipe.name
            inner.mkdir(mode=0o700)
            yield inner

    def record(self, draft: Path, recipe: Recipe, name: str) -> PreparedSession:
        """Describe what a draft holds, and open it.

        Raises:
            ArtifactError: It holds no session.
        """
        from causal_onnx.runtime.artifact.drafts import sync  # noqa: PLC0415

        for item in draft.iterdir():
            sync(item)
        files = {item.name: identity(item.lstat()) for item in draft.iterdir()}
        document = {"recipe": recipe.document, "kept": {k: list(v) for k, v in files.items()}}
        (draft / RECORD).write_text(json.dumps(document), encoding="utf-8")
        sync(draft / RECORD)
        found = self._opened(draft, recipe, name)
        if found is None:
            raise ArtifactError(
                f"{name}: onnxruntime wrote no session that can be kept prepared; load it without "
                "prepared"
            )
        return found

    def keep(self, draft: Path, recipe: Recipe) -> None:
        """Put a draft in its place, and remove what was kept of the same file as it was before."""
        from causal_onnx.runtime.artifact.drafts import sync  # noqa: PLC0415

        target = self._path / recipe.name
        _remove(target)
        draft.replace(target)
        sync(self._path)
        for other in self._path.iterdir():
            if other == target:
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = read_json((other / RECORD).read_bytes())["recipe"]
                same = known["model"] == recipe.model
                if same and known["files"] != recipe.document["files"]:
                    _remove(other)

    def _opened(self, folder: Path, recipe: Recipe, name: str) -> PreparedSession | None:
        try:
            descriptor = os.open(
                folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            try:
                record = read_json(_content(RECORD, descriptor))
                kept = {key: tuple(value) for key, value in record["kept"].items()}
                known = record["recipe"]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return None
            own = _not_own(os.fstat(descriptor)) is None
            # Through JSON, so that what is compared was written the same way.
            if not own or known != json.loads(json.dumps(recipe.document)) or MODEL not in kept:
                return None
            if not kept.keys() <= {MODEL, WEIGHTS} or _files_in(descriptor, kept) != kept:
                return None
            undo.pop_all()
        return PreparedSession(descriptor, kept, name)


def saving_settings(folder: Path, options: Any) -> None:
    """Let a session of these options write itself, and what it made of the weights, to `folder`."""
    options.optimized_model_filepath = str(folder / MODEL)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", WEIGHTS),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            str(EXTERNAL_FROM_BYTES),
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)


def _not_own(found: os.stat_result) -> str | None:
    """Why a folder is none in which only this user writes; None: it is one."""
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "may be written to by others" if found.st_mode & 0o022 else None


def _files_in(descriptor: int, names: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the files of a folder are now; those that are no files of this user are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            one = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISREG(one.st_mode) and one.st_nlink == 1 and one.st_uid == os.geteuid():
                found[name] = identity(one)
    return found


def _content(name: str, folder: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(name, flags, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _onnxruntime() -> dict[str, Any]:
    """Which onnxruntime this is; one of the same version may be of another build."""
    ort = import_onnxruntime()
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    library = Path(str(state.__file__)).stat()
    return {
        "version": ort.__version__,
        "build": ort.get_build_info(),
        "library": [library.st_size, library.st_mtime_ns],
    }


def _processor(path: Path = PROCESSOR) -> tuple[str, ...]:
    """What kinds of processors there are, by the instructions that they have."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in lines)
    found = {(key.strip(), value.strip()) for key, _, value in pairs if key.strip() in _KINDS}
    if not any(key in _INSTRUCTIONS for key, _ in found):
        raise ValueError(
            f"prepared needs to know which instructions the processor has, and {path} does not say "
            "so here; load without prepared"
        )
    return tuple(sorted(f"{key}: {value}" for key, value in found))
