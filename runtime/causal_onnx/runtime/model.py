"""Load an artifact and call it: numpy in, numpy out."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.artifact.artifact import read_artifact
from causal_onnx.runtime.contract import Contract, describe_all
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.later import Later
from causal_onnx.runtime.request.request import RequestChecker
from causal_onnx.runtime.session.runner import LoadOptions, Runner

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.artifact.selftest import SelfTestReport
    from causal_onnx.runtime.generation import beam
    from causal_onnx.runtime.generation import chat as chatting
    from causal_onnx.runtime.generation import codes as coding
    from causal_onnx.runtime.generation import generate as generating
    from causal_onnx.runtime.generation.sampling import Sampling
    from causal_onnx.runtime.profile import Profile
    from causal_onnx.runtime.scan import Limits
    from causal_onnx.runtime.session.trial import TrialLimits
    from causal_onnx.runtime.stream.given import Given
    from causal_onnx.runtime.stream.stream import Stream
    from causal_onnx.runtime.text.tokenizer import Tokenizer

    Array = npt.NDArray[Any]

__all__ = ["Model", "load"]


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
    prepared: str | os.PathLike[str] | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Model:
    """Load an exported model.

    Args:
        path: The .onnx file, the folder that holds it as `model.onnx` (docs/bundle.md), or a whole
            model as bytes (without external data).
        device: "cpu"; "cuda" or "cuda:N", which runs there or raises; or "auto", which uses CUDA
            where it works and otherwise the CPU, with a warning in the log. `Model.device` says
            which device is used.
        threads: Threads of one call; None: one per physical core that this process may use.
        spinning: Whether idle threads wait in a busy loop. None: for 100 us, as fast as True on a
            quiet machine and nearly as sparing as False on a busy one; True: much longer; False:
            never.
        contract: For a file without one: what it takes and returns. It is checked against the
            graph, and replaces the contract of a file that has one.
        cast: Convert inputs of another dtype, such as float64 to float32. A value that the
            contract's dtype cannot hold is still an error.
        check_finite: Refuse NaN and infinity in the inputs; this costs a pass over them.
        flush_denormals: Treat denormal numbers (below 1e-38) as zero. On x86 this is up to twice as
            fast, and the caller's own arithmetic is not affected.
        huge_pages: Keep the weights, and the memory that long calls compute in, on huge pages if
            Linux has them (on the CPU): a language model then decodes up to 1.5 times as fast, and
            long calls take 2 to 8 % less. Loading, and the first two calls of a new length, take
            0.3 ms per MB longer.
        tokenizer: A `tokenizer.json`, or the folder that holds one, for text in and out (extra
            `text`). None: the one beside the file, if there is one; see `Model.tokenizer`.
        trusted: Load the file without the scan that refuses harmful files (docs/safety.md). Nothing
            else skips that scan.
        limits: What the scan allows; None: `Limits()`.
        isolated_trial: First load the file, replay its golden vectors and call it in a separate
            process (Linux). If that process ends by a signal, or needs more memory or time than
            `TrialLimits`, that is an error here. True: `TrialLimits()`.
        prepared: A folder in which only this user writes. The first load stores there the form that
            onnxruntime makes of the file for this processor (twice the size of the weights). Every
            later load maps it into memory, starts several times sooner, and shares the memory with
            other processes that do the same. Outputs have the same bits. It is made again if the
            file, onnxruntime or the processor has changed. On the CPU, on Linux.
        adapters: LoRA adapters by names of your own, for a file that was exported with `adaptable`:
            folders that PEFT wrote, or .npz or .safetensors files (docs/how-to/adapters.md).
            Streams and generation choose among them row by row, by name.

    Raises:
        FileNotFoundError: There is no such file, or no such adapter.
        ValueError: An option has another value, or `prepared` is a folder where others may write.
        UnsafeFileError: The file holds something that exports do not, exceeds `limits`, or failed
            its trial.
        ArtifactError: The file is damaged, of an unknown layout, of a newer format, or has no
            contract; or so is an adapter, or it does not fit the file.
        DeviceError: The device cannot be used, or not for all of the model.
        ImportError: onnxruntime is not installed.
    """
    text = None
    if tokenizer is not None:
        from causal_onnx.runtime.text.tokenizer import Tokenizer  # noqa: PLC0415 - few pass it

        text = Tokenizer(tokenizer).path
    options = LoadOptions(
        device=device,
        threads=threads,
        spinning=spinning,
        contract=contract,
        cast=cast,
        check_finite=check_finite,
        flush_denormals=flush_denormals,
        huge_pages=huge_pages,
        tokenizer=text,
        trusted=trusted,
        limits=limits,
        isolated_trial=isolated_trial,
        prepared=None if prepared is None else Path(prepared),
        adapters={name: Path(place).absolute() for name, place in (adapters or {}).items()},
    )
    return _load(path, options)


def _load(path: str | os.PathLike[str] | bytes, options: LoadOptions) -> Model:
    return Model(Runner.open(read_artifact(path), options))


class Model:
    """A loaded artifact; made by `load`.

    It may be called from any number of threads at once. Pickling keeps the path and the options,
    and loads the file again on the other side. A model does not outlive `os.fork`: load it in the
    child. Its memory is freed with the last reference to it.
    """

    def __init__(self, runner: Runner) -> None:
        """Take a session that is open; callers use `load`."""
        self.runner = runner
        """The session with its contract and options, which streams and profiles are built on."""
        contract = runner.contract
        self._results = [
            spec.name for spec in contract.outputs if spec.name not in contract.present_names
        ]

    @property
    def contract(self) -> Contract:
        """What the model takes and gives."""
        return self.runner.contract

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda:0"."""
        return str(self.runner.device)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that were loaded with it."""
        return self.runner.adapters.names

    def adapter_inputs(self, rows: Sequence[str | None]) -> dict[str, Array]:
        """The inputs by which a call of `run` uses adapters: model.run(x, **these).

        Args:
            rows: The name of each row's adapter; None: it has none.

        Raises:
            ValueError: One is not loaded.
        """
        return self.runner.adapters.inputs(rows)

    @property
    def source(self) -> dict[str, Any]:
        """What was exported, as the file says; empty if it says nothing."""
        return self.runner.artifact.source

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate of causality as it stands in the file, or None."""
        return self.runner.artifact.certificate

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text into token ids: the one that was passed to `load`, or a `tokenizer.json`
        beside the file; None if there is neither.

        Raises:
            ArtifactError: It cannot be read.
            ImportError: The package tokenizers is not installed (extra `text`).
        """
        from causal_onnx.runtime.text.tokenizer import (  # noqa: PLC0415
            TOKENIZER_FILE,
            Tokenizer,
        )

        path, location = self.runner.options.tokenizer, self.runner.artifact.location
        if path is None and isinstance(location, Path):
            beside = location.with_name(TOKENIZER_FILE)
            path = beside if beside.is_file() else None
        return None if path is None else Tokenizer(path)

    @functools.cached_property
    def default_sampling(self) -> Sampling:
        """The choice of tokens that `generation_config.json` asks for, beside the tokenizer that
        `load` was given or else beside the file; greedy where it asks for none.

        `chat` uses it. `generate` and the others use it only if it is passed to them: they take the
        most likely token, so that the same request always has the same result.

        Raises:
            ArtifactError: The file is damaged.
        """
        from causal_onnx.runtime.generation.defaults import default_sampling  # noqa: PLC0415
        from causal_onnx.runtime.generation.sampling import Sampling  # noqa: PLC0415

        folder = self._settings_folder
        return Sampling() if folder is None else default_sampling(folder)

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """What the decoder of a model with an encoder begins with, as `generation_config.json`
        names it (`decoder_start_token_id`). It stands before a prompt that is a text, and is the
        prompt where none is given. Empty where none is named, and for a model that needs no
        `inputs`.

        Raises:
            ArtifactError: The file is damaged.
        """
        from causal_onnx.runtime.generation.defaults import decoder_start  # noqa: PLC0415
        from causal_onnx.runtime.generation.plan import is_language_model  # noqa: PLC0415

        folder = self._settings_folder
        if folder is None or is_language_model(self.contract):
            return ()
        return decoder_start(folder)

    @property
    def greedy(self) -> Sampling:
        """How `generate` and the others choose tokens where no `sampling` is given: the likeliest.
        Where there are `start_ids`, ids that the settings force or suppress are so here, too: such
        a model begins and ends its texts by them."""
        from causal_onnx.runtime.generation.sampling import Sampling  # noqa: PLC0415

        if not self.start_ids:
            return Sampling()
        return replace(self.default_sampling, temperature=0.0, top_k=None, top_p=None, min_p=None)

    @property
    def _settings_folder(self) -> Path | None:
        """Where generation_config.json lies, if there is one."""
        path, location = self.runner.options.tokenizer, self.runner.artifact.location
        beside = location if path is None else path
        return beside.parent if isinstance(beside, Path) else None

    def __repr__(self) -> str:
        takes = ", ".join(describe_all(self.contract.inputs))
        gives = ", ".join(describe_all(self.contract.outputs))
        return f"<Model {self.runner.artifact.name} on {self.device}: {takes} -> {gives}>"

    def __reduce__(self) -> tuple[Any, ...]:
        location = self.runner.artifact.location
        path = location if isinstance(location, bytes) else location.absolute()
        return _load, (path, self.runner.options)

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
                f"this model has {len(self._results)} outputs besides its cache "
                f"({', '.join(self._results)}); call model.run(...), which returns all of them "
                "by name"
            )
        runner = self.runner
        return runner.run(runner.checker, inputs, named, self._results)[self._results[0]]

    def run(self, /, *inputs: npt.ArrayLike, **named: npt.ArrayLike) -> dict[str, Array]:
        """Run the model and return every output by its name; otherwise like calling it.

        Raises:
            ValueError: The inputs are not what the contract allows.
            RunError: onnxruntime failed.
        """
        return self.runner.run(self.runner.checker, inputs, named)

    def stream(
        self,
        *,
        batch: int = 1,
        capacity: int | None = None,
        inputs: Mapping[str, Given] | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> Stream:
        """Start `batch` sequences that are read chunk by chunk; for models with a KV cache.

        Args:
            batch: How many.
            capacity: Positions that each may have, allocated at once. None: as many as the model
                allows, in buffers that double when they are full.
            inputs: Inputs that are given here, by name, and are not passed to the calls. They have
                `batch` rows, or one row that all share. Without an axis of positions, they are the
                same in every call: a memory, a label, a source text. Along the positions, they are
                for the first ones of each row, and zero (False) behind them: embeddings of an
                image. A list with an array or None for each row, without the axis of rows, is for
                as many positions of each as its array has.
            adapter: The name of the adapter that changes the model for these sequences, or one name
                or None for each.

        Raises:
            ValueError: The model has no cache, or `batch`, `capacity`, `inputs` or `adapter` do not
                fit it.
        """
        from causal_onnx.runtime.stream.stream import Stream  # noqa: PLC0415

        rows = [adapter] * batch if isinstance(adapter, str) else adapter
        return Stream(self.runner, batch=batch, capacity=capacity, inputs=inputs, adapters=rows)

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        inputs: Mapping[str, Given] | None = None,
    ) -> Stream:
        """Restore a stream that `Stream.save` wrote.

        Args:
            path: The file.
            inputs: As for `stream`: the file does not hold what the stream was started with.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: `inputs` do not fit the model.
            ArtifactError: The file is damaged, is not a saved stream, or is of another model.
        """
        from causal_onnx.runtime.stream.stream import Stream  # noqa: PLC0415

        return Stream.restore(self.runner, path, inputs=inputs)

    if TYPE_CHECKING:
        tokens = generating.tokens
        generate = generating.generate
        generate_batch = generating.generate_batch
        beam_search = beam.beam_search
        chat = chatting.chat
        frames = coding.frames
        generate_codes = coding.generate_codes
        generate_codes_batch = coding.generate_codes_batch
    else:
        tokens = Later("causal_onnx.runtime.generation.generate")
        generate = Later("causal_onnx.runtime.generation.generate")
        generate_batch = Later("causal_onnx.runtime.generation.generate")
        beam_search = Later("causal_onnx.runtime.generation.beam")
        chat = Later("causal_onnx.runtime.generation.chat")
        frames = Later("causal_onnx.runtime.generation.codes")
        generate_codes = Later("causal_onnx.runtime.generation.codes")
        generate_codes_batch = Later("causal_onnx.runtime.generation.codes")

    def profile(
        self, *, seq: int = 1, past: int = 0, batch: int = 1, calls: int | None = None
    ) -> Profile:
        """Find out which operators and submodules cost the most, in calls on made-up inputs.

        The calls are timed first, and then repeated in a second session under onnxruntime's
        profiler; meanwhile, the model is in memory twice. On CUDA the profiler's times are those of
        launching kernels.

        Args:
            seq: Positions of one call.
            past: Positions of the past before it; for models with a cache.
            batch: Sequences.
            calls: How many to time; None: as many as fit into half a second, 3 to 200.

        Raises:
            ValueError: The contract does not allow such a call.
            RunError: onnxruntime failed.
            ArtifactError: The file is gone, has changed, or its graph cannot be read.
        """
        from causal_onnx.runtime.profile import profile  # noqa: PLC0415

        return profile(self.runner, seq=seq, past=past, batch=batch, calls=calls)

    def selftest(self) -> SelfTestReport:
        """Replay the golden vectors in the file, whose outputs PyTorch computed.

        Raises:
            ArtifactError: The file has no golden vectors, or they do not fit its contract.
            RunError: onnxruntime failed.
        """
        from causal_onnx.runtime.artifact.selftest import (  # noqa: PLC0415
            SelfTestCase,
            SelfTestReport,
        )

        artifact = self.runner.artifact
        golden = artifact.golden
        if golden is None or not golden.cases:
            raise ArtifactError(
                f"{artifact.name} carries no golden vectors to replay; export it with causal-onnx"
            )
        # Recorded inputs are right by themselves; bfloat16 among them are stored as float32.
        checker = RequestChecker(self.contract, cast=True)
        cases = []
        for case in golden.cases:
            try:
                outputs = self.runner.run(checker, (), case.inputs)
            except ValueError as error:
                raise ArtifactError(
                    f"the golden vectors in {artifact.name} do not fit its contract: {error}"
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
