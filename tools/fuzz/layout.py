"""Where the fields of a model lie in its bytes, and how one is replaced."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

from causal_onnx.runtime.artifact.protobuf import (
    LENGTH_DELIMITED,
    WindowedFile,
    WireError,
    fields,
    varint_bytes,
)
from causal_onnx.runtime.scan.schema import MESSAGES

__all__ = ["Layout", "Place", "length_delimited"]

MOST = 50_000
"""Fields that are listed; beyond, a file has been doubled too often to be worth it."""


@dataclass(frozen=True, slots=True)
class Place:
    """One field."""

    field: tuple[str, str]
    """(message, field), as the schema names them."""
    kind: str
    number: int
    wire_type: int
    start: int
    payload: int
    """Behind tag and length."""
    end: int
    parents: tuple[Place, ...]
    """The fields that hold it, outermost first."""

    @property
    def tag_bytes(self) -> int:
        return len(varint_bytes(self.number << 3 | self.wire_type))


@dataclass(slots=True)
class Layout:
    """All fields that the schema knows, by what they are."""

    places: dict[tuple[str, str], list[Place]] = field(default_factory=lambda: defaultdict(list))
    count: int = 0

    @classmethod
    def of(cls, content: bytes) -> Layout:
        """The fields up to the first damage."""
        layout = cls()
        with contextlib.suppress(WireError):
            layout._add(WindowedFile(BytesIO(content)), "model", 0, len(content), ())
        return layout

    def _add(
        self, source: WindowedFile, message: str, start: int, end: int, parents: tuple[Place, ...]
    ) -> None:
        begun = start
        for number, wire_type, value, _, after in fields(source, start, end):
            spec = MESSAGES[message].get(number)
            if spec is not None and self.count < MOST:
                payload = value if wire_type else begun + len(varint_bytes(number << 3))
                place = Place(
                    (message, spec.name),
                    spec.kind,
                    number,
                    wire_type,
                    begun,
                    payload,
                    after,
                    parents,
                )
                self.places[place.field].append(place)
                self.count += 1
                if spec.kind == "message" and wire_type == LENGTH_DELIMITED and len(parents) < 20:
                    self._add(source, spec.message, value, after, (*parents, place))
            begun = after

    def choose(
        self, rng: random.Random, allowed: Callable[[Place], bool] = lambda place: True
    ) -> Place | None:
        """A field: first what kind of field, so that rare ones come up, then which."""
        kinds = [kind for kind, places in self.places.items() if any(map(allowed, places))]
        if not kinds:
            return None
        return rng.choice([place for place in self.places[rng.choice(kinds)] if allowed(place)])

    @staticmethod
    def replace(content: bytes, place: Place, new: bytes) -> bytes:
        """`content` with `new` in the place of a field, and the lengths around it put right."""
        for parent in reversed(place.parents):
            inside = content[parent.payload : place.start] + new + content[place.end : parent.end]
            new, place = length_delimited(parent.number, inside), parent
        return content[: place.start] + new + content[place.end :]


def length_delimited(number: int, payload: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return varint_bytes(number << 3 | LENGTH_DELIMITED) + varint_bytes(len(payload)) + payload
