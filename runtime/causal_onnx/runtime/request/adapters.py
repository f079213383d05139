"""Adapters that are loaded beside a model, and the inputs that they are for the rows of a call."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.errors import ArtifactError

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.artifact.adapter import LowRank

    Array = npt.NDArray[Any]

__all__ = ["RANK_STEP", "Adapters"]

RANK_STEP = 16
"""Ranks are padded with zeros to a multiple of this, so that a row's bits do not depend on the
ranks of the rows beside it: kernels add in groups of positions, and the groups stay the same."""


class Adapters:
    """The adapters of one model by name; None is the model without any."""

    def __init__(
        self, contract: Contract, paths: Mapping[str, str | os.PathLike[str]], *, name: str
    ) -> None:
        """Read all of them.

        Args:
            contract: Of the model.
            paths: Where each lies, as for `read_adapter`.
            name: Of the model's file, for messages.

        Raises:
            FileNotFoundError: One does not exist.
            ArtifactError: One is damaged, of another kind, or changes what no adapter of this file
                can change.
            ValueError: The file takes no adapters, or a name is empty.
        """
        self._specs = {spec.name: spec for spec in contract.inputs}
        self._pairs = contract.adapters
        self._rank_axis = contract.rank_axis
        if paths and not self._pairs:
            raise ValueError(
                f"{name} takes no adapters: export it with adaptable=[...], or merge one into a "
                "file of its own: causal-onnx export MODEL --adapter ADAPTER"
            )
        self._found: dict[str, dict[str, LowRank]] = {}
        self._last: tuple[tuple[str | None, ...], dict[str, Array]] = ((), {})
        """The rows that were asked for last, and their inputs."""
        for key, path in paths.items():
            if not isinstance(key, str) or not key:
                raise ValueError(f"the name of an adapter must be a non-empty text, got {key!r}")
            from causal_onnx.runtime.artifact import adapter  # noqa: PLC0415 - few have any

            layers = adapter.read_adapter(path)
            self._check(layers, os.fspath(path), name)
            self._found[key] = layers

    @property
    def names(self) -> tuple[str, ...]:
        """Those that can be asked for."""
        return tuple(self._found)

    @property
    def by_rank(self) -> tuple[str, ...]:
        """The same, those of the lowest rank first."""
        return tuple(sorted(self._found, key=self._rank))

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """What tells the adapters from others of the same name: the hash of each."""
        import hashlib  # noqa: PLC0415 - few have any

        found = {}
        for name, layers in self._found.items():
            digest = hashlib.sha256()
            for layer in sorted(layers):
                for array in (layers[layer].down, layers[layer].up):
                    digest.update(f"{layer} {array.shape} ".encode() + array.tobytes())
            found[name] = digest.hexdigest()
        return found

    def _check(self, layers: Mapping[str, LowRank], path: str, name: str) -> None:
        """Every matrix has a place in the file, and its shape."""
        pairs = {pair.module: pair for pair in self._pairs}
        for layer, found in layers.items():
            pair = pairs.get(layer)
            if pair is None:
                known = ", ".join(list(pairs)[:4]) + (", ..." if len(pairs) > 4 else "")
                raise ArtifactError(
                    f"the adapter {path} changes {layer}, and {name} takes adapters of {known} "
                    f"only; export it with adaptable=[{path!r}]"
                )
            width, height = self._specs[pair.down].axes[1], self._specs[pair.up].axes[2]
            if (found.down.shape[1], found.up.shape[0]) != (width, height):
                raise ArtifactError(
                    f"the adapter {path} has {layer} from {found.down.shape[1]} to "
                    f"{found.up.shape[0]} features, and {name} from {width} to {height}; it was "
                    "trained on another model"
                )
            dtype = self._specs[pair.down].host_dtype
            largest = float(np.finfo(dtype).max)
            if max(np.abs(found.down).max(), np.abs(found.up).max()) > largest:
                raise ArtifactError(
                    f"the adapter {path} holds values in {layer} that {dtype} cannot hold"
                )

    def check_names(self, rows: Sequence[str | None]) -> None:
        """Raise `ValueError` where one is not loaded."""
        for row in rows:
            if row is not None and row not in self._found:
                known = ", ".join(self._found) or "none"
                raise ValueError(
                    f"there is no adapter {row!r}; loaded are {known} "
                    "(load(path, adapters={'name': folder}))"
                )

    def inputs(self, rows: Sequence[str | None]) -> dict[str, Array]:
        """The inputs of a call: name -> array, not to be written to.

        Args:
            rows: The name of each row's adapter; None: it has none.

        Raises:
            ValueError: One is not loaded.
        """
        asked = tuple(rows)
        last, found = self._last
        if asked != last:
            found = self._inputs(asked)
            # A server asks for the same rows in call after call, and they are some megabytes.
            self._last = asked, found
        return dict(found)

    def _inputs(self, rows: Sequence[str | None]) -> dict[str, Array]:
        self.check_names(rows)
        rank = max((self._rank(row) for row in rows), default=0)
        rank = -(-rank // RANK_STEP) * RANK_STEP
        sizes = {"batch": len(rows), str(self._rank_axis): rank}
        found: dict[str, Array] = {}
        for pair in self._pairs:
            down = _zeros(self._specs[pair.down], sizes)
            up = _zeros(self._specs[pair.up], sizes)
            for index, row in enumerate(rows):
                layer = None if row is None else self._found[row].get(pair.module)
                if layer is not None:
                    down[index, :, : len(layer.down)] = layer.down.T
                    up[index, : len(layer.down)] = layer.up.T
            found |= {pair.down: down, pair.up: up}
        for array in found.values():
            array.flags.writeable = False
        return found

    def _rank(self, row: str | None) -> int:
        layers = () if row is None else self._found[row].values()
        return max((len(layer.down) for layer in layers), default=0)


def _zeros(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    return np.zeros(spec.shape(sizes), spec.host_dtype)
