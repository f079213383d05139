"""Make an onnxruntime session on the device asked for, with settings that were measured."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.held import FOLDER_OPTION, NO_FOLDER, Held
from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.errors import ArtifactError, DeviceError
from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.runtime.session.device import (
    Device,
    missing_provider,
    nodes_off_device,
    parse_device,
)
from causal_onnx.runtime.session.huge_pages import on_huge_pages
from causal_onnx.runtime.session.integer_products import PRECISION, exact_product_settings
from causal_onnx.runtime.session.ort import (
    first_line,
    import_onnxruntime,
    onnxruntime_errors,
    refuse_older,
)
from causal_onnx.runtime.session.prepared import PreparedSession, saving_settings
from causal_onnx.runtime.session.threads import available_cores

__all__ = ["Lender", "SessionSettings", "computing_settings", "open_session"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Lender = Held | PreparedSession
"""What holds the files that a session is made of."""

MOST_THREADS = 1 << 16

SPIN_US = 100
"""How long an idle thread waits in a busy loop before it sleeps, unless the caller decides.

A decoder of 8 layers, width 768, two threads on two cores, median ms of a call (ms of processor
time). One token on a quiet machine: endless 7.4 (14), none 10.7 (22), 20 us 8.6 (17), 100 us 7.1
(14), 1000 us 7.2 (14). Beside eight busy processes: endless 66 (24), none 33 (12), 50 us 38 (15),
100 us 39 (16), 300 us 57 (19); 64 tokens there: 328, 210, 218, 222, 277. A short wait catches
nearly all gaps between operators; a thread that spins longer only takes a core from another.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionSettings:
    """How a session uses the processors."""

    threads: int | None = None
    """Threads of one call; None: one per physical core that this process may use."""
    spinning: bool | None = None
    """Idle threads wait in a busy loop, without end or not at all; None: for `SPIN_US`."""
    flush_denormals: bool = True
    """Treat denormal numbers as zero while the model runs."""
    huge_pages: bool = True
    """Put the weights on huge pages, where the system has them; the CPU's only."""
    profile_prefix: str | None = None
    """Let onnxruntime time every node, into a file whose path begins so; None: not."""
    save_to: Path | None = None
    """A folder to write the session to, with what was made of its weights; None: it is not."""

    def __post_init__(self) -> None:
        if self.threads is not None:
            wanted = "a positive integer or None"
            whole_number("threads", self.threads, most=MOST_THREADS, wanted=wanted)
        for field in ("spinning", "flush_denormals", "huge_pages"):
            value = getattr(self, field)
            if not isinstance(value, bool) and not (field == "spinning" and value is None):
                raise ValueError(f"{field} must be True or False, got {value!r}")


def open_session(
    artifact: Artifact, device: str, settings: SessionSettings, held: Lender | None = None
) -> tuple[Any, Device]:
    """Make the session of `artifact` and say where it runs.

    Args:
        artifact: The model.
        device: "cpu", "cuda", "cuda:N" or "auto": CUDA where it works, else the CPU with a warning
            in the log.
        settings: Threads, spinning, denormals.
        held: Its files as they were judged, or the session that was made of them before; None:
            onnxruntime opens them by their names.

    Raises:
        DeviceError: The device cannot run this model, or not all of it.
        ArtifactError: onnxruntime is older than the file needs or does not accept the model, or a
            held file was written to.
        ValueError: `device` is none of the above.
    """
    wanted = parse_device(device)
    if wanted is not None:
        return _open(artifact, wanted, settings, held), wanted
    cuda, cpu = Device("cuda"), Device("cpu")
    try:
        return _open(artifact, cuda, settings, held), cuda
    except DeviceError as error:
        logger.warning("device='auto' runs %s on the CPU: %s", artifact.name, error)
    return _open(artifact, cpu, settings, held), cpu


def computing_settings(
    artifact: Artifact, device: Device, settings: SessionSettings
) -> dict[str, str]:
    """The entries of a session that change what it computes, or by which kernels."""
    # For the threads of the pool; the calling thread is seen to with every call (denormals.py).
    found = {"session.set_denormal_as_zero": str(int(settings.flush_denormals))}
    contract = artifact.contract
    if device.kind == "cpu" and contract is not None and contract.precision == PRECISION:
        found.update(exact_product_settings())
    if device.kind == "cpu" and (contract is None or _has_fp16(contract)):
        # In files of others, it ends the process where fp16 is transposed and multiplied:
        # https://github.com/microsoft/onnxruntime/issues/28392. It serves Conv of two dimensions.
        found["optimization.disable_specified_optimizers"] = "NchwcTransformer"
    return found


def _has_fp16(contract: Contract) -> bool:
    specs = (*contract.inputs, *contract.outputs)
    return contract.precision == "fp16" or any(spec.dtype == "float16" for spec in specs)


def _open(
    artifact: Artifact, device: Device, settings: SessionSettings, held: Lender | None
) -> Any:
    ort = import_onnxruntime()
    contract = artifact.contract
    if contract is not None:
        refuse_older(ort.__version__, contract.min_onnxruntime, artifact.name, contract.form)
    offered = ort.get_available_providers()
    if device.provider not in offered:
        raise missing_provider(device, offered)
    not_found = _preload_cuda(ort) if device.kind == "cuda" else ""
    try:
        # onnxruntime sets the mode for denormals on the thread that makes the first session of a
        # process, and leaves it so. This thread's end takes it away again.
        # Weights that are mapped from a file lie on the pages that the file has in memory, and a
        # session that is written is not the one that will be used.
        is_mapped = isinstance(held, PreparedSession) or settings.save_to is not None
        with (
            on_huge_pages()
            if settings.huge_pages and device.kind == "cpu" and not is_mapped
            else contextlib.nullcontext()
        ):
            session = _on_own_thread(lambda: _create(ort, artifact, device, settings, held))
    except onnxruntime_errors() as error:
        if device.kind == "cuda" and _CUDA_FAILURE.search(str(error)):
            raise DeviceError(
                f"device='{device}' was requested, but CUDA fails: {first_line(error)}. "
                "See `causal-onnx doctor`"
            ) from error
        if (
            device.kind == "cpu"
            and "NOT_IMPLEMENTED" in str(error)
            and contract is not None
            and contract.precision == "bf16"
        ):
            raise DeviceError(
                f"{artifact.name} computes in bfloat16, which onnxruntime supports only on "
                "CUDA; load "
                "it with device='cuda', or export with precision='fp32' or 'fp16' for the CPU"
            ) from error
        raise _refused(ort, artifact, error, held) from error
    got = session.get_providers()
    if device.provider not in got[:1]:
        raise DeviceError(
            f"device='{device}' was requested, but onnxruntime made a session for "
            f"{', '.join(got)}: {not_found or 'the driver or a CUDA library is missing'}. "
            "pip install 'causal-onnx[gpu]' brings the libraries; see `causal-onnx doctor`"
        )
    if device.kind != "cpu":
        off = nodes_off_device(session.get_provider_graph_assignment_info(), device)
        if off:
            raise DeviceError(
                f"device='{device}' was requested, but onnxruntime has no kernel there for "
                f"{len(off)} nodes of {artifact.name}, and would run them on the CPU: "
                f"{', '.join(off[:10])}{' and others' if len(off) > 10 else ''}. "
                "Export with target='portable' or another precision, or load with device='cpu'"
            )
    return session


def _create(
    ort: Any, artifact: Artifact, device: Device, settings: SessionSettings, held: Lender | None
) -> Any:
    options = ort.SessionOptions()
    # Its warnings and errors go to stderr, past Python; what matters comes as an exception.
    options.log_severity_level = 4
    if settings.profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile_prefix
    options.intra_op_num_threads = int(settings.threads or available_cores())
    spins = settings.spinning is not False
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    if settings.spinning is None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    for key, value in computing_settings(artifact, device, settings).items():
        options.add_session_config_entry(key, value)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if settings.save_to is not None:
        saving_settings(settings.save_to, options)
    # Else the name's ending or the first bytes choose another parser.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.kind == "cuda":
        # TF32 is on by default and keeps 10 bits of the mantissa: errors of 1e-3 instead of 1e-6.
        cuda = {"device_id": str(device.index), "use_tf32": "0"}
        providers = [(device.provider, cuda), *providers]
    with _source(artifact, held, options) as source:
        return ort.InferenceSession(
            source,
            options,
            providers=providers,
            # Without this a failing provider is replaced by the CPU, with a line on stdout.
            enable_fallback=0,
        )


def _source(
    artifact: Artifact, held: Lender | None, options: Any
) -> AbstractContextManager[str | bytes]:
    """What onnxruntime reads the model from."""
    if held is not None:
        return held.lent_to(options)
    location = artifact.location
    if isinstance(location, bytes):
        # Else external data named in the bytes would be read from the current folder.
        options.add_session_config_entry(FOLDER_OPTION, NO_FOLDER)
        return contextlib.nullcontext(location)
    return contextlib.nullcontext(str(location))


def _preload_cuda(ort: Any) -> str:
    """Load the CUDA libraries that pip installed, and give the first that is missing, or ""."""
    said = io.StringIO()
    # It prints what it does not find, which may lie where onnxruntime finds it all the same.
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    return said.getvalue().strip().partition("\n")[0]


# As onnxruntime words failures of CUDA; the word alone may stand in the name of the file.
_CUDA_FAILURE = re.compile(
    r"CUDA (?:failure|error|driver|runtime)|cudaError|CUDNN|CUBLAS|CUDAExecutionProvider|CUDA_PATH"
)


_REMEDIES = (
    ("External data", "its weights lie in a file beside it, which must be there; bytes have none"),
    ("Unsupported model IR version", "update onnxruntime, or export with ir_version 10"),
    ("onnx opset", "update onnxruntime, or export with a lower opset"),
    ("No Op registered", "update onnxruntime, or export with a lower opset"),
    ("not a registered function/op", "it uses an operator that onnxruntime does not have"),
    ("NOT_IMPLEMENTED", "an operator has no kernel for its types; export in another precision"),
    ("INVALID_PROTOBUF", "the file is damaged; export or download it again"),
)
"""What onnxruntime's message says -> what to do about it."""


def _refused(ort: Any, artifact: Artifact, error: Exception, held: Lender | None) -> ArtifactError:
    text = str(error)
    line = first_line(error)
    remedy = next((what for sign, what in _REMEDIES if sign in text), "export it again")
    return ArtifactError(
        f"onnxruntime {ort.__version__} does not load {artifact.name}: "
        f"{line if held is None else held.named(line)} "
        f"({remedy})"
    )


def _on_own_thread(make: Callable[[], T]) -> T:
    """Call `make` on a thread that ends with it, and give its result or raise its error."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(make())
        except BaseException as error:  # raised again in the caller
            errors.append(error)

    thread = threading.Thread(target=body, name="causal-onnx-load", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
