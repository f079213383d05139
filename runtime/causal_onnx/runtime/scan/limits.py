"""How much a file may hold before `load` refuses it, and how a refusal is worded."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits", "Overrun", "Refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the scan of `load` allows; raise the limits that a file of yours needs."""

    max_file_bytes: int = 2 << 30
    """Size of the .onnx file; protobuf itself ends at 2 GiB."""
    max_weight_bytes: int = 64 << 30
    """All tensors together, those in files beside the model included."""
    max_value_elements: int = 1 << 28
    """Elements of one value, with every axis that the inputs leave open at 16. Of this limit and
    the next two: a file that keeps to them with fewer batch rows alone takes no more than 8, 4 or 2
    in a call."""
    max_memory_bytes: int = 1 << 30
    """All values of a graph together at that size; 16 bytes more for each byte of its weights."""
    max_work: int = 1 << 35
    """Operations of a call at that size, and of loading, in multiplications of a matrix product: 10
    seconds or so; 2048 more for each byte of the weights."""
    max_fields: int = 500_000
    """Fields of all messages: what the scan costs, 1 to 3 us each. A graph of 10,000 nodes has
    150,000."""
    max_nodes: int = 100_000
    """Nodes of the graph, those in branches and loops included."""
    max_loop_steps: int = 1 << 20
    """Steps of one Loop, at dimensions of up to 2^20 (a million positions)."""
    allow_links: bool = False
    """Weights beside the model may be symbolic links into the folder where the model itself lies,
    as they are in a Hugging Face cache."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "allow_links":
                if not isinstance(value, bool):
                    raise ValueError(f"allow_links must be True or False, got {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{item.name} must be a positive integer, got {value!r}")


class Refused(Exception):  # noqa: N818 - becomes an UnsafeFileError, which names the file
    """What was found, and what to do about it."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


class Overrun(Refused):
    """It takes too much at the sizes at which it was judged; at smaller ones perhaps not."""
