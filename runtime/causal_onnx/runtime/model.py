"""Load an artifact and call it: numpy in, numpy out."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime import beam, bfloat16
from causal_onnx.runtime import generate as generating
from causal_onnx.runtime.artifact import Artifact, read_artifact
from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.denormals import flushing_denormals
from causal_onnx.runtime.device import Device
from causal_onnx.runtime.device_memory import DeviceMemory
from causal_onnx.runtime.errors import ArtifactError, RunError
from causal_onnx.runtime.golden import json_number
from causal_onnx.runtime.held import Held
from causal_onnx.runtime.ort import first_line, import_onnxruntime, onnxruntime_errors
from causal_onnx.runtime.request import RequestChecker
from causal_onnx.runtime.scan import Limits, scan
from causal_onnx.runtime.session import SessionSettings, open_session
from causal_onnx.runtime.signature import check_signature
from causal_onnx.runtime.stream import Stream
from causal_onnx.runtime.text import TOKENIZER_FILE, Tokenizer
from causal_onnx.runtime.threads import available_cores
from causal_onnx.runtime.trial import TrialLimits, hold_unjudged, try_out

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.profile import Profile

    Array = npt.NDArray[Any]

__all__ = ["Model", "SelfTestCase", "SelfTestReport", "load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestCase:
    """One golden vector, replayed."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    error: float
    """Largest error relative to each output's scale; infinite where shapes or NaNs differ."""
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestReport:
    """Whether this runtime repeats what PyTorch computed."""

    cases: tuple[SelfTestCase, ...]
    tolerance: float
    device: str

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def max_error(self) -> float:
        return max((case.error for case in self.cases), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: an infinite error is None."""
        cases = [{**asdict(case), "error": json_number(case.error)} for case in self.cases]
        return {
            **asdict(self),
            "cases": cases,
            "passed": self.passed,
            "max_error": json_number(self.max_error),
        }


def load(
    path: str | os.PathLike[str] | bytes,
    *,
    device: str = "cpu",
    threads: int | None = None,
    spinning: bool | None = None,
    contract: Contract | None = None,
    cast: bool = False,
    check_finite: bool = False,
    flush_denormals: bool = True,
    huge_pages: bool = True,
    tokenizer: str | os.PathLike[str] | None = None,
    trusted: bool = False,
    limits: Limits | None = None,
    isolated_trial: bool | TrialLimits = False,
) -> Model:
    """Load an exported model.

    Args:
        path: The .onnx file, or a whole model as bytes (without external data).
        device: "cpu"; "cuda" or "cuda:N", which runs there or raises; "auto", which uses CUDA
            where it works and otherwise the CPU, with a warning in the log. `Model.device` says
            what it is.
        threads: Threads of one call; None: one per physical core that this process may use.
        spinning: Whether idle threads wait in a busy loop. None: for 100 us, as fast as True on a
            quiet machine and nearly as sparing as False on a busy one; True: much longer; False:
            never.
        contract: For a file without one: what it takes and gives. It is checked against the graph,
            and replaces the contract of a file that has one.
        cast: Convert inputs of another dtype, float64 to float32 for one. A value that the
            contract's dtype cannot hold is an error still.
        check_finite: Refuse NaN and infinity in the inputs; costs a pass over them.
        flush_denormals: Compute with denormal numbers (below 1e-38) as zero; on x86 up to twice as
            fast, and the caller's own arithmetic is untouched.
        huge_pages: Keep the weights on huge pages where Linux has them (on the CPU): a language
            model decodes up to 1.5 times faster. Loading takes 0.3 ms per MB longer, once.
        tokenizer: A `tokenizer.json`, or the folder that holds one, for text in and out (extra
            `text`). None: the one beside the file, if there is one; see `Model.tokenizer`.
        trusted: Load the file without the scan that refuses what could harm whoever loads it
            (docs/safety.md). Nothing else skips that scan.
        limits: What the scan allows; None: `Limits()`.
        isolated_trial: First load the file, replay its golden vectors and call it in a process of
            its own (Linux). Whatever ends that process, or needs more memory or time than
            `TrialLimits`, is an error here. True: `TrialLimits()`.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeFileError: The file holds what exports do not, or more than `limits`, or failed its
            trial.
        ArtifactError: Damaged, foreign, of a newer format, or without a contract.
        DeviceError: The device cannot be used, or not for all of the model.
        ImportError: onnxruntime is not installed.
    """
    if contract is not None and not isinstance(contract, Contract):
        raise TypeError(f"contract must be a Contract, got {type(contract).__name__}")
    if not isinstance(trusted, bool):
        raise ValueError(f"trusted must be True or False, got {trusted!r}")
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits must be a Limits, got {type(limits).__name__}")
    if not isinstance(isolated_trial, bool | TrialLimits):
        raise TypeError(
            f"isolated_trial must be True, False or a TrialLimits, got {isolated_trial!r}"
        )
    options = {
        "device": device,
        "threads": threads,
        "spinning": spinning,
        "contract": contract,
        "cast": cast,
        "check_finite": check_finite,
        "flush_denormals": flush_denormals,
        "huge_pages": huge_pages,
        "tokenizer": tokenizer,
        "trusted": trusted,
        "limits": limits,
        "isolated_trial": isolated_trial,
    }
    _settings(options)  # its errors come before those of the file
    artifact = read_artifact(path)
    promised = contract if contract is not None else artifact.contract
    if promised is None:
        raise ArtifactError(
            f"{artifact.name} carries no contract: causal-onnx did not write it. If you know what "
            "it takes and gives, say so: load(path, contract=Contract(inputs=..., outputs=...))"
        )
    with _files(artifact, options) as held:
        if isolated_trial and held is not None:
            trial = TrialLimits() if isolated_trial is True else isolated_trial
            try_out(held, trial, artifact=artifact, contract=contract, options=options)
        model = make_model(artifact, promised, held, options)
    if tokenizer is not None:
        options["tokenizer"] = Tokenizer(tokenizer).path
    return model


def make_model(
    artifact: Artifact, contract: Contract, held: Held | None, options: Mapping[str, Any]
) -> Model:
    """Make the model of files that were judged, or, where `held` is None, need not be.

    Args:
        artifact: The model.
        contract: What it must take and give.
        held: Its files.
        options: As for `load`.

    Raises:
        ArtifactError: onnxruntime does not accept the model, or it is not the contract's.
        DeviceError: The device cannot be used, or not for all of the model.
    """
    session, chosen = open_session(artifact, options["device"], _settings(options), held)
    check_signature(session, contract, name=artifact.name)
    return Model(
        artifact=artifact,
        contract=contract,
        session=session,
        device=chosen,
        flush_denormals=options["flush_denormals"],
        checker=RequestChecker(
            contract, cast=options["cast"], check_finite=options["check_finite"]
        ),
        options=options,
        loaded_from={} if held is None else held.identities,
    )


def _settings(options: Mapping[str, Any], profile_prefix: str | None = None) -> SessionSettings:
    return SessionSettings(
        threads=options["threads"],
        spinning=options["spinning"],
        flush_denormals=options["flush_denormals"],
        huge_pages=options["huge_pages"],
        profile_prefix=profile_prefix,
    )


def _files(
    artifact: Artifact, options: Mapping[str, Any]
) -> AbstractContextManager[Held] | AbstractContextManager[None]:
    """The files of a model, judged; None where nobody asked for it."""
    if not options["trusted"]:
        return scan(artifact, options["limits"] or Limits(), options["contract"])
    return hold_unjudged(artifact) if options["isolated_trial"] else nullcontext()


class Model:
    """A loaded artifact; made by `load`.

    It may be called from any number of threads at once. Pickling keeps the path and the options,
    and loads the file again on the other side. A model does not outlive `os.fork`: load it in the
    child. Its memory is freed with the last reference to it.
    """

    def __init__(
        self,
        *,
        artifact: Artifact,
        contract: Contract,
        session: Any,
        device: Device,
        flush_denormals: bool,
        checker: RequestChecker,
        options: Mapping[str, Any],
        loaded_from: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._artifact = artifact
        self.loaded_from = loaded_from
        """The files that were judged and loaded, by name: what tells one from another."""
        self._contract = contract
        self._session = session
        self._device = device
        self._checker = checker
        self._options = options
        self._pid = os.getpid()
        self._output_names = [spec.name for spec in contract.outputs]
        self._results = [name for name in self._output_names if name not in contract.present_names]
        self._output_batch_axes = {spec.name: spec.axis_of("batch") for spec in contract.outputs}
        self._has_bfloat16 = any(
            spec.dtype == "bfloat16" for spec in (*contract.inputs, *contract.outputs)
        )
        self._errors = onnxruntime_errors()
        # A GPU flushes by itself, and its calling thread computes nothing.
        self._mode = flushing_denormals if flush_denormals and device.kind == "cpu" else nullcontext

    @property
    def contract(self) -> Contract:
        """What the model takes and gives."""
        return self._contract

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda:0"."""
        return str(self._device)

    @property
    def source(self) -> dict[str, Any]:
        """What was exported, as the file tells it; empty where it tells nothing."""
        return self._artifact.source

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate of causality as it stands in the file, or None."""
        return self._artifact.certificate

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text into token ids: the one that `load` was told of, or a `tokenizer.json`
        beside the file; None where there is neither.

        Raises:
            ArtifactError: It cannot be read.
            ImportError: The package tokenizers is not installed (extra `text`).
        """
        path, location = self._options.get("tokenizer"), self._artifact.location
        if path is None and isinstance(location, Path):
            beside = location.with_name(TOKENIZER_FILE)
            path = beside if beside.is_file() else None
        return None if path is None else Tokenizer(path)

    def __repr__(self) -> str:
        takes = ", ".join(spec.describe() for spec in self._contract.inputs)
        gives = ", ".join(spec.describe() for spec in self._contract.outputs)
        return f"<Model {self._artifact.name} on {self.device}: {takes} -> {gives}>"

    def __reduce__(self) -> tuple[Any, ...]:
        location = self._artifact.location
        path = location if isinstance(location, bytes) else location.absolute()
        return _load_again, (path, dict(self._options))

    def __call__(self, /, *inputs: npt.ArrayLike, **named: npt.ArrayLike) -> Array:
        """Run a model of one output (the cache, if it has one, starts empty and is not returned).

        Args:
            *inputs: Arrays in the contract's order.
            **named: Arrays by the name of the input.

        Returns:
            The output, a new array. bfloat16 comes as float32. Without the batch axis if the
            inputs came without it.

        Raises:
            ValueError: The inputs are not what the contract allows, or the model has several
                outputs: then use `run`.
            RunError: onnxruntime failed.
        """
        if len(self._results) != 1:
            raise ValueError(
                f"this model has {len(self._results)} outputs beside its cache "
                f"({', '.join(self._results)}); call model.run(...), which gives all by name"
            )
        return self._run(self._checker, inputs, named, self._results)[self._results[0]]

    def run(self, /, *inputs: npt.ArrayLike, **named: npt.ArrayLike) -> dict[str, Array]:
        """Run the model and give every output by its name; otherwise like calling it.

        Raises:
            ValueError: The inputs are not what the contract allows.
            RunError: onnxruntime failed.
        """
        return self._run(self._checker, inputs, named, self._output_names)

    def run_step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with all inputs by name, as the graph wants them; for streams.

        Raises:
            RunError: onnxruntime failed.
        """
        self._refuse_forked()
        return dict(zip(self._output_names, self._outputs(feeds, self._output_names), strict=True))

    def stream(self, *, batch: int = 1, capacity: int | None = None) -> Stream:
        """Start `batch` sequences that are read chunk by chunk; for models with a KV cache.

        Args:
            batch: How many.
            capacity: Positions that each may have; their room is taken at once. None: as many as
                the model allows, and the room doubles when it is needed.

        Raises:
            ValueError: The model has no cache, or `batch` or `capacity` does not fit it.
        """
        return Stream(self, batch=batch, capacity=capacity)

    def restore(self, path: str | os.PathLike[str]) -> Stream:
        """Take up a stream that `Stream.save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ArtifactError: The file is damaged, no saved stream, or of another model.
        """
        return Stream.restore(self, path)

    tokens = generating.tokens
    generate = generating.generate
    generate_batch = generating.generate_batch
    beam_search = beam.beam_search

    def profile(
        self, *, seq: int = 1, past: int = 0, batch: int = 1, calls: int | None = None
    ) -> Profile:
        """Find out which operators and submodules cost the most, in calls on made-up inputs.

        The calls are timed first, and then made again in a second session, under onnxruntime's
        profiler: as long as that takes, the model is in memory twice. On CUDA the profiler's times
        are those of starting kernels.

        Args:
            seq: Positions of one call.
            past: Positions that it has behind it; for models with a cache.
            batch: Sequences.
            calls: How many to time; None: as many as fit into half a second, 3 to 200.

        Raises:
            ValueError: The contract does not allow such a call.
            RunError: onnxruntime failed.
            ArtifactError: The file is gone, has changed, or its graph cannot be read.
        """
        # Whoever only runs models need not wait for it.
        from causal_onnx.runtime.profile import profile  # noqa: PLC0415

        return profile(self, seq=seq, past=past, batch=batch, calls=calls)

    def selftest(self) -> SelfTestReport:
        """Replay the golden vectors in the file, whose outputs PyTorch computed.

        Raises:
            ArtifactError: The file carries none, or not of its own contract.
            RunError: onnxruntime failed.
        """
        golden = self._artifact.golden
        if golden is None or not golden.cases:
            raise ArtifactError(
                f"{self._artifact.name} carries no golden vectors to replay; export it with "
                "causal-onnx"
            )
        # Recorded inputs are right by themselves; bfloat16 among them are stored as float32.
        checker = RequestChecker(self._contract, cast=True)
        cases = []
        for case in golden.cases:
            try:
                outputs = self._run(checker, (), case.inputs, self._output_names)
            except ValueError as error:
                raise ArtifactError(
                    f"the golden vectors in {self._artifact.name} do not fit its contract: {error}"
                ) from error
            worst = case.error(outputs)
            cases.append(
                SelfTestCase(
                    shapes={name: tuple(value.shape) for name, value in case.inputs.items()},
                    error=worst,
                    passed=worst <= golden.tolerance,
                )
            )
        return SelfTestReport(cases=tuple(cases), tolerance=golden.tolerance, device=self.device)

    @property
    def writes_in_place(self) -> bool:
        """Whether a stream's buffers can serve the graph as past and present at once."""
        return any(pair.shared for pair in self._contract.cache) and not self._has_bfloat16

    @property
    def cache_device(self) -> Device | None:
        """Where a stream's cache stays between calls, if not in host memory: on the model's GPU.

        bfloat16 travels through host memory: there it is float32, which onnxruntime cannot bind.
        """
        return self._device if self._device.kind != "cpu" and not self._has_bfloat16 else None

    @property
    def checks(self) -> dict[str, bool]:
        """The options of `load` that say how inputs are checked."""
        return {name: bool(self._options[name]) for name in ("cast", "check_finite")}

    def profiled(self, prefix: str) -> Model:
        """The same model with a session of its own, which times every node; for `profile`.

        Args:
            prefix: What the path of the file of times begins with.

        Raises:
            ArtifactError: The file is gone or has changed.
            DeviceError: The device cannot be used any more.
        """
        options = self._options
        with _files(self._artifact, options) as held:
            settings = _settings(options, prefix)
            session, _ = open_session(self._artifact, self.device, settings, held)
        return Model(
            artifact=self._artifact,
            contract=self._contract,
            session=session,
            device=self._device,
            flush_denormals=options["flush_denormals"],
            checker=self._checker,
            options=options,
            loaded_from=self.loaded_from,
        )

    def end_profiling(self) -> Path:
        """Let a profiled model write what it has measured, and give the file."""
        return Path(self._session.end_profiling())

    @property
    def artifact(self) -> Artifact:
        """The file, with its metadata."""
        return self._artifact

    @property
    def threads(self) -> int:
        """Threads of one call."""
        return self._options["threads"] or available_cores()

    def new_binding(self) -> Any:
        """An `onnxruntime.IOBinding` for this model's session."""
        return self._session.io_binding()

    def run_bound(self, binding: Any, feeds: Mapping[str, Array | DeviceMemory]) -> None:
        """Run with inputs and outputs bound already; `feeds` is for the message of an error.

        Raises:
            RunError: onnxruntime failed.
        """
        self._refuse_forked()
        try:
            with self._mode():
                self._session.run_with_iobinding(binding)
        except self._errors as error:
            raise self._failed(feeds, error) from error

    def _refuse_forked(self) -> None:
        if self._pid != os.getpid():
            raise RunError(
                "this model was loaded before os.fork(), which does not copy the threads of its "
                "session; load it in the child process, or start processes with 'spawn'"
            )

    def _failed(self, feeds: Mapping[str, Array | DeviceMemory], error: Exception) -> RunError:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
        return RunError(
            f"onnxruntime failed on {self._artifact.name} with {shapes}: {first_line(error)}"
        )

    def _run(
        self,
        checker: RequestChecker,
        inputs: tuple[Any, ...],
        named: Mapping[str, Any],
        names: list[str],
    ) -> dict[str, Array]:
        """Check a request, run it, and give the outputs in `names`."""
        self._refuse_forked()
        request = checker.check(inputs, named)
        outputs = self._outputs(request.feeds, names)
        if request.unbatched:
            axes = [self._output_batch_axes[name] for name in names]
            outputs = [
                value if axis is None else value.squeeze(axis)
                for value, axis in zip(outputs, axes, strict=True)
            ]
        return dict(zip(names, outputs, strict=True))

    def _outputs(self, feeds: Mapping[str, Array], names: list[str]) -> list[Array]:
        try:
            with self._mode():
                outputs: list[Array] = (
                    self._run_bfloat16(feeds, names)
                    if self._has_bfloat16
                    else self._session.run(names, feeds)
                )
        except self._errors as error:
            raise self._failed(feeds, error) from error
        return outputs

    def _run_bfloat16(self, feeds: Mapping[str, Array], names: list[str]) -> list[Array]:
        """Run with bfloat16 as bits, which `InferenceSession.run` cannot pass to or from numpy."""
        ort_value = import_onnxruntime().OrtValue
        values = {}
        wide = {spec.name for spec in self._contract.inputs if spec.dtype == "bfloat16"}
        for name, array in feeds.items():
            values[name] = (
                ort_value.ortvalue_from_numpy_with_onnx_type(bfloat16.to_bits(array), 16)
                if name in wide
                else ort_value.ortvalue_from_numpy(array)
            )
        results = self._session.run_with_ort_values(names, values)
        return [
            _bfloat16_values(result)
            if result.data_type() == "tensor(bfloat16)"
            else np.asarray(result.numpy())
            for result in results
        ]


def _load_again(path: Path | bytes, options: dict[str, Any]) -> Model:
    return load(path, **options)


def _bfloat16_values(value: Any) -> Array:
    """The float32 copy of a bfloat16 tensor of onnxruntime's, in host memory."""
    shape = tuple(value.shape())
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, np.float32)
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return bfloat16.from_bits(bits).reshape(shape)
