"""What can run a model: each gives its name and version, and a session like onnxruntime's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Engine = Callable[[Path], tuple[str, Any]]


def open_onnxruntime(path: Path) -> tuple[str, Any]:
    """The usual one."""
    import onnxruntime  # noqa: PLC0415 - the others do without it

    return f"onnxruntime {onnxruntime.__version__}", onnxruntime.InferenceSession(path)


def open_reference(path: Path) -> tuple[str, Any]:
    """ONNX's own evaluator, in numpy."""
    import onnx  # noqa: PLC0415
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    return f"onnx {onnx.__version__} reference", ReferenceEvaluator(str(path))


class OpenVino:
    """A compiled model of OpenVINO's, called as a session is."""

    def __init__(self, path: Path) -> None:
        import openvino  # noqa: PLC0415

        core = openvino.Core()
        # On some processors it would compute in bfloat16.
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self.version = openvino.__version__.partition("-")[0]
        self._compiled = core.compile_model(str(path), "CPU", settings)

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs, copied: OpenVINO writes the next call's into the same memory."""
        results = self._compiled(feeds)
        return [results[name].copy() for name in names]


def open_openvino(path: Path) -> tuple[str, Any]:
    """Intel's runtime, on the CPU."""
    session = OpenVino(path)
    return f"OpenVINO {session.version}", session


ENGINES: dict[str, Engine] = {
    "onnxruntime": open_onnxruntime,
    "reference": open_reference,
    "openvino": open_openvino,
}
