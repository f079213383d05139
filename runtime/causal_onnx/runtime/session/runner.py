"""One loaded model on one device: every call of its session goes through here, checked."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.held import Held
from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.errors import ArtifactError, RunError
from causal_onnx.runtime.request.adapters import Adapters
from causal_onnx.runtime.request.example import make_request
from causal_onnx.runtime.request.request import RequestChecker
from causal_onnx.runtime.scan import Limits, scan
from causal_onnx.runtime.session import bfloat16
from causal_onnx.runtime.session.denormals import run_flushed
from causal_onnx.runtime.session.device import Device
from causal_onnx.runtime.session.device_memory import DeviceMemory
from causal_onnx.runtime.session.graph_check import check_signature
from causal_onnx.runtime.session.huge_pages import Growth, on_huge_pages
from causal_onnx.runtime.session.open import (
    Lender,
    SessionSettings,
    computing_settings,
    open_session,
)
from causal_onnx.runtime.session.ort import first_line, import_onnxruntime, onnxruntime_errors
from causal_onnx.runtime.session.prepared import PreparedFolder, PreparedSession, Recipe
from causal_onnx.runtime.session.threads import available_cores

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.session.trial import TrialLimits

    Array = npt.NDArray[Any]

__all__ = ["LoadOptions", "Runner"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What the caller of `load` chose; its docstring says what each means."""

    device: str = "cpu"
    threads: int | None = None
    spinning: bool | None = None
    contract: Contract | None = None
    cast: bool = False
    check_finite: bool = False
    flush_denormals: bool = True
    huge_pages: bool = True
    tokenizer: Path | None = None
    trusted: bool = False
    limits: Limits | None = None
    isolated_trial: bool | TrialLimits = False
    prepared: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prepared is not None and self.device != "cpu":
            raise ValueError(
                f"prepared keeps sessions of the CPU, got device={self.device!r}; load with "
                "device='cpu', or without prepared"
            )
        if self.contract is not None and not isinstance(self.contract, Contract):
            raise TypeError(f"contract must be a Contract, got {type(self.contract).__name__}")
        if not isinstance(self.trusted, bool):
            raise ValueError(f"trusted must be True or False, got {self.trusted!r}")
        if self.limits is not None and not isinstance(self.limits, Limits):
            raise TypeError(f"limits must be a Limits, got {type(self.limits).__name__}")
        if not isinstance(self.isolated_trial, bool):
            from causal_onnx.runtime.session.trial import TrialLimits  # noqa: PLC0415 - few ask

            if not isinstance(self.isolated_trial, TrialLimits):
                raise TypeError(
                    "isolated_trial must be True, False or a TrialLimits, got "
                    f"{self.isolated_trial!r}"
                )
        self.settings()

    def settings(
        self, *, profile_prefix: str | None = None, save_to: Path | None = None
    ) -> SessionSettings:
        """Those that the session is made with."""
        return SessionSettings(
            threads=self.threads,
            spinning=self.spinning,
            flush_denormals=self.flush_denormals,
            huge_pages=self.huge_pages,
            profile_prefix=profile_prefix,
            save_to=save_to,
        )


class Runner:
    """A session with its contract, its device and the options it was loaded with.

    Streams, generation and profiles are written against this. It may be called from any number of
    threads at once, and does not outlive `os.fork`.
    """

    def __init__(
        self,
        *,
        artifact: Artifact,
        contract: Contract,
        session: Any,
        device: Device,
        options: LoadOptions,
        loaded_from: Mapping[str, tuple[int, ...]],
        largest_batch: int | None = None,
    ) -> None:
        self.loaded_from = loaded_from
        """The files that were judged and loaded, by name: what tells one from another."""
        self.largest_batch = largest_batch
        """The most rows of a call, as the scan found; None: any number."""
        self.artifact = artifact
        self.contract = contract
        self.session = session
        self.device = device
        self.options = options
        self.adapters = Adapters(contract, options.adapters, name=artifact.name)
        """Those that were loaded beside the model."""
        self._pid = os.getpid()
        self._output_names = [spec.name for spec in contract.outputs]
        self._output_batch_axes = {spec.name: spec.axis_of("batch") for spec in contract.outputs}
        self._input_batch_axes = {
            spec.name: spec.axes.index("batch") for spec in contract.inputs if "batch" in spec.axes
        }
        self._has_bfloat16 = any(
            spec.dtype == "bfloat16" for spec in (*contract.inputs, *contract.outputs)
        )
        self._errors = onnxruntime_errors()
        # A GPU flushes by itself, and its calling thread computes nothing.
        flushes = options.flush_denormals and device.kind == "cpu"
        self._in_mode = run_flushed if flushes else _run_as_is
        optional = contract.optional_names
        needed = (spec for spec in contract.inputs if spec.name not in optional)
        sequence = next((spec for spec in needed if "seq" in spec.axes), None)
        self._growth = None
        if options.huge_pages and device.kind == "cpu" and sequence is not None:
            width = math.prod(size for size in sequence.axes if isinstance(size, int))
            self._growth, self._sequence = Growth(width), sequence.name

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        options: LoadOptions,
        *,
        profile_prefix: str | None = None,
    ) -> Runner:
        """Judge a file and make its session.

        Args:
            artifact: The file, its header read.
            options: What the caller chose.
            profile_prefix: Where the path of a file of times begins, for a session that times every
                node; None: for one that does not.

        Raises:
            UnsafeFileError: The file holds what exports do not, or more than the limits.
            ArtifactError: It is damaged, of a newer format, without a contract and of a layout from
                which none follows, or has changed.
            DeviceError: The device cannot be used, or not for all of the model.
            ValueError: A session cannot be kept prepared here, or not of this model.
            OSError: It cannot be written.
        """
        given = options.contract
        contract = artifact.contract if given is None else given
        if contract is None:
            contract = given = artifact.derived_contract
        if options.prepared is not None:
            return cls._open_prepared(artifact, contract, given, options)
        with _files(artifact, options, given) as held:
            _try_out(held, artifact, given, options)
            return cls.of_held(artifact, contract, held, options, profile_prefix=profile_prefix)

    @classmethod
    def _open_prepared(
        cls, artifact: Artifact, contract: Contract, given: Contract | None, options: LoadOptions
    ) -> Runner:
        """Take the session that was kept of these very files, or keep one."""
        assert options.prepared is not None
        location = artifact.location
        if isinstance(location, bytes):
            raise ValueError("prepared keeps what was made of a file, got bytes; pass a path")
        folder = PreparedFolder(options.prepared)

        def recipe_of(held: Held) -> Recipe:
            settings = computing_settings(artifact, Device("cpu"), options.settings())
            return Recipe.of(location, held.identities, settings)

        if not options.isolated_trial:
            # No session is made of the file itself, so that it need not be copied to be judged.
            with _files(artifact, options, given, copied=False) as held:
                assert held is not None
                kept = folder.find(recipe_of(held), artifact.name)
                if kept is not None:
                    with kept:
                        runner = cls.of_held(artifact, contract, held, options, source=kept)
                    held.check_unchanged()
                    return runner
        with folder.locked(), _files(artifact, options, given) as held:
            assert held is not None
            _try_out(held, artifact, given, options)
            recipe = recipe_of(held)
            with contextlib.ExitStack() as stack:
                kept = folder.find(recipe, artifact.name)  # another process may have made it
                if kept is not None:
                    stack.enter_context(kept)
                    return cls.of_held(artifact, contract, held, options, source=kept)
                draft = stack.enter_context(folder.draft(recipe))
                plain = cls.of_held(artifact, contract, held, options, save_to=draft)
                kept = stack.enter_context(folder.record(draft, recipe, artifact.name))
                runner = cls.of_held(artifact, contract, held, options, source=kept)
                _check_same_bits(plain, runner)
                folder.keep(draft, recipe)
            return runner

    @classmethod
    def of_held(
        cls,
        artifact: Artifact,
        contract: Contract,
        held: Held | None,
        options: LoadOptions,
        *,
        profile_prefix: str | None = None,
        source: PreparedSession | None = None,
        save_to: Path | None = None,
    ) -> Runner:
        """Make the session of files that were judged, or, where `held` is None, need not be.

        Args:
            artifact: The model.
            contract: What requests are checked against.
            held: Its files.
            options: What the caller chose.
            profile_prefix: As for `open`.
            source: What was made of these files before, which the session is made of.
            save_to: As for `SessionSettings`.

        Raises:
            ArtifactError: onnxruntime does not accept the model, or it is not the contract's.
            DeviceError: The device cannot be used, or not for all of the model.
        """
        settings = options.settings(profile_prefix=profile_prefix, save_to=save_to)
        lender: Lender | None = held if source is None else source
        session, device = open_session(artifact, options.device, settings, lender)
        check_signature(session, contract, name=artifact.name)
        return cls(
            artifact=artifact,
            contract=contract,
            session=session,
            device=device,
            options=options,
            loaded_from={} if held is None else held.identities,
            largest_batch=None if held is None else held.largest_batch,
        )

    @functools.cached_property
    def checker(self) -> RequestChecker:
        """What requests are checked with."""
        return self.checker_of(self.contract)

    def checker_of(self, contract: Contract, *, batch: int | None = None) -> RequestChecker:
        """A checker of requests against another contract, by the options of this model.

        Raises:
            ValueError: `batch` is more rows than the file was judged for.
        """
        self._check_batch(batch or 1)
        return RequestChecker(
            contract,
            cast=self.options.cast,
            check_finite=self.options.check_finite,
            batch=batch,
        )

    @property
    def writes_in_place(self) -> bool:
        """Whether a stream's buffers can serve the graph as past and present at once."""
        return any(pair.shared for pair in self.contract.cache) and not self._has_bfloat16

    @property
    def cache_device(self) -> Device | None:
        """Where a stream's cache stays between calls, if not in host memory: on the model's GPU.

        bfloat16 travels through host memory: there it is float32, which onnxruntime cannot bind.
        """
        return self.device if self.device.kind != "cpu" and not self._has_bfloat16 else None

    @property
    def threads(self) -> int:
        """Threads of one call."""
        return self.options.threads or available_cores()

    def run(
        self,
        checker: RequestChecker,
        inputs: tuple[Any, ...],
        named: Mapping[str, Any],
        names: list[str] | None = None,
    ) -> dict[str, Array]:
        """Check a request, run it, and return the outputs in `names`; None: all.

        Raises:
            ValueError: The inputs are not what the contract allows, or have more rows than the file
                was judged for.
            RunError: onnxruntime failed.
        """
        self._refuse_forked()
        names = self._output_names if names is None else names
        request = checker.check(inputs, named)
        outputs = self._outputs(request.feeds, names)
        if request.unbatched:
            axes = [self._output_batch_axes[name] for name in names]
            outputs = [
                value if axis is None else value.squeeze(axis)
                for value, axis in zip(outputs, axes, strict=True)
            ]
        return dict(zip(names, outputs, strict=True))

    def run_step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with all inputs by name, as the graph wants them.

        Raises:
            ValueError: There are more rows than the file was judged for.
            RunError: onnxruntime failed.
        """
        self._refuse_forked()
        return dict(zip(self._output_names, self._outputs(feeds, self._output_names), strict=True))

    def new_binding(self) -> Any:
        """An `onnxruntime.IOBinding` for this model's session."""
        return self.session.io_binding()

    def run_bound(self, binding: Any, feeds: Mapping[str, Array | DeviceMemory]) -> None:
        """Run with inputs and outputs bound already; `feeds` are the inputs, for their shapes.

        Raises:
            ValueError: There are more rows than the file was judged for.
            RunError: onnxruntime failed.
        """
        self._refuse_forked()
        self._check_rows(feeds)
        try:
            self._call(feeds, lambda: self.session.run_with_iobinding(binding))
        except self._errors as error:
            raise self._failed(feeds, error) from error

    def profiled(self, prefix: str) -> Runner:
        """The same model with a session of its own, which times every node.

        Args:
            prefix: Where the path of the file of times begins.

        Raises:
            ArtifactError: The file is gone or has changed.
            DeviceError: The device cannot be used any more.
        """
        options = replace(
            self.options, device=str(self.device), isolated_trial=False, prepared=None
        )
        return Runner.open(self.artifact, options, profile_prefix=prefix)

    def end_profiling(self) -> Path:
        """Let a profiled model write what it has measured, and return the path of the file."""
        return Path(self.session.end_profiling())

    def _refuse_forked(self) -> None:
        if self._pid != os.getpid():
            raise RunError(
                "this model was loaded before os.fork(), which does not copy the threads of its "
                "session; load it in the child process, or start processes with 'spawn'"
            )

    def _check_rows(self, feeds: Mapping[str, Array | DeviceMemory]) -> None:
        if self.largest_batch is not None:
            for name, axis in self._input_batch_axes.items():
                if name in feeds:
                    self._check_batch(feeds[name].shape[axis])

    def _check_batch(self, rows: int) -> None:
        if self.largest_batch is not None and rows > self.largest_batch:
            raise ValueError(
                f"a call has a batch of {rows}, but this file was loaded for {self.largest_batch} "
                "at most: with more, it could take more memory or time than the limits of `load` "
                "allow. Make several calls, or raise the limits: load(..., "
                "limits=Limits(max_memory_bytes=..., max_value_elements=..., max_work=...))"
            )

    def _failed(self, feeds: Mapping[str, Array | DeviceMemory], error: Exception) -> RunError:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
        return RunError(
            f"onnxruntime failed on {self.artifact.name} with {shapes}: {first_line(error)}"
        )

    def _outputs(self, feeds: Mapping[str, Array], names: list[str]) -> list[Array]:
        self._check_rows(feeds)
        try:
            outputs: list[Array] = self._call(
                feeds,
                lambda: (
                    self._run_bfloat16(feeds, names)
                    if self._has_bfloat16
                    else self.session.run(names, feeds)
                ),
            )
        except self._errors as error:
            raise self._failed(feeds, error) from error
        return outputs

    def _call(self, feeds: Mapping[str, Array | DeviceMemory], call: Callable[[], Any]) -> Any:
        """Call the session in the mode for denormals that was asked for."""
        if self._growth is not None and self._growth.may_come(
            math.prod(feeds[self._sequence].shape)
        ):
            with on_huge_pages():
                return self._in_mode(call)
        return self._in_mode(call)

    def _run_bfloat16(self, feeds: Mapping[str, Array], names: list[str]) -> list[Array]:
        """Run with bfloat16 as bits, which `InferenceSession.run` cannot pass to or from numpy."""
        ort_value = import_onnxruntime().OrtValue
        values = {}
        wide = {spec.name for spec in self.contract.inputs if spec.dtype == "bfloat16"}
        for name, array in feeds.items():
            values[name] = (
                ort_value.ortvalue_from_numpy_with_onnx_type(bfloat16.to_bits(array), 16)
                if name in wide
                else ort_value.ortvalue_from_numpy(array)
            )
        results = self.session.run_with_ort_values(names, values)
        return [
            _bfloat16_values(result)
            if result.data_type() == "tensor(bfloat16)"
            else np.asarray(result.numpy())
            for result in results
        ]


def _run_as_is(call: Callable[[], Any]) -> Any:
    return call()


def _files(
    artifact: Artifact, options: LoadOptions, contract: Contract | None, *, copied: bool = True
) -> AbstractContextManager[Held] | AbstractContextManager[None]:
    """The files of a model, judged; None where nobody needs them held."""
    if not options.trusted:
        return scan(artifact, options.limits or Limits(), contract, copied=copied)
    if options.isolated_trial or options.prepared is not None:
        from causal_onnx.runtime.session.trial import hold_unjudged  # noqa: PLC0415

        return hold_unjudged(artifact, copied=copied)
    return nullcontext()


def _try_out(
    held: Held | None, artifact: Artifact, contract: Contract | None, options: LoadOptions
) -> None:
    """Load the model in a process of its own first, where that was asked for."""
    asked = options.isolated_trial
    if asked and held is not None:
        from causal_onnx.runtime.session.trial import (  # noqa: PLC0415
            TRIED_OPTIONS,
            TrialLimits,
            try_out,
        )

        limits = TrialLimits() if isinstance(asked, bool) else asked
        chosen = {name: getattr(options, name) for name in TRIED_OPTIONS}
        try_out(held, limits, artifact=artifact, contract=contract, options=chosen)


def _check_same_bits(one: Runner, other: Runner) -> None:
    """Check that two sessions of one model compute the same, bit by bit.

    Raises:
        ArtifactError: They do not, or no request could be made up to tell.
    """
    name = one.artifact.name
    remedy = "load it without prepared"
    for request in _requests(one.contract):
        try:
            feeds = one.checker.check((), request).feeds
            found, expected = other.run_step(feeds), one.run_step(feeds)
        except (ValueError, RunError) as error:
            raise ArtifactError(
                f"{name} cannot be kept prepared: whether the session that onnxruntime writes "
                f"computes the same could not be seen, since a call failed: {error}; {remedy}"
            ) from error
        for key, value in expected.items():
            if value.tobytes() != found[key].tobytes():
                raise ArtifactError(
                    f"{name} cannot be kept prepared: the session that onnxruntime wrote of it "
                    f"computes other bits of {key!r}; {remedy}"
                )


def _requests(contract: Contract) -> Iterator[dict[str, Array]]:
    """Calls of one position and of several, of one row and of two, as far as they are allowed."""
    rows = (1, 2) if any("batch" in spec.axes for spec in contract.inputs) else (1,)
    least, most = contract.min_seq_len, contract.max_seq_len
    longest = 1 if contract.ragged == "single" else min(least + 6, most or least + 6)
    for batch, seq in itertools.product(rows, sorted({least, longest})):
        yield make_request(contract, batch=batch, seq=seq)


def _bfloat16_values(value: Any) -> Array:
    """The float32 copy of a bfloat16 tensor of onnxruntime's, in host memory."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, np.float32)
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return bfloat16.from_bits(bits).reshape(shape)
