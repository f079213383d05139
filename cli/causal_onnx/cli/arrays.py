"""Read and write numpy files for the command line; nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from causal_onnx.cli.errors import CommandError, UsageError

__all__ = ["read_arrays", "read_named", "replacing", "write_arrays"]

Array = npt.NDArray[Any]

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
"""A .npz file is a zip archive; the second is an empty one."""


def read_arrays(path: Path) -> Array | dict[str, Array]:
    """Read a .npy file, or the arrays of a .npz file by name.

    Raises:
        CommandError: There is no such file, it is no numpy file, or it holds Python objects.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(NPY_MAGIC))
        if start != NPY_MAGIC and not start.startswith(ZIP_MAGICS):
            raise ValueError("it does not begin like a numpy file")
        # Without pickles: unpickling runs whatever the file says.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise CommandError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise CommandError(f"{path} is a folder; expected an .npy or .npz file") from None
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        # numpy's own advice on pickles is to load them all the same.
        reason = (
            "it holds Python objects, which could run code" if "pickle" in str(error) else error
        )
        raise CommandError(
            f"{path} does not hold plain numpy arrays: {reason}. Write it with "
            "numpy.save(path, array) or numpy.savez(path, name=array)"
        ) from error
    return np.asarray(loaded)


def read_named(text: str) -> tuple[str, Array]:
    """Read `NAME=FILE`, the .npy file of one input.

    Raises:
        UsageError: It cannot be read so.
        CommandError: As for `read_arrays`.
    """
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise UsageError(f"--input takes name=file.npy, got {text!r}")
    value = read_arrays(Path(file))
    if isinstance(value, dict):
        raise UsageError(
            f"--input {name}: {file} holds several arrays; expected a .npy file of one"
        )
    return name, value


def write_arrays(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write one array as .npy, or several as .npz, whole or not at all."""
    with replacing(path) as file:
        if path.suffix == ".npz":
            np.savez(file, allow_pickle=False, **outputs)
        else:
            (array,) = outputs.values()
            np.save(file, array, allow_pickle=False)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is written; on an error `path` stays as it is.

    Raises:
        CommandError: Its folder does not exist, or cannot be written to.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except FileNotFoundError:
        raise CommandError(f"there is no folder {path.parent} to write {path.name} to") from None
    except OSError as error:
        raise CommandError(f"cannot write to {path.parent}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # mkstemp makes files that only their owner reads; give the rights any new file gets.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
