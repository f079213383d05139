"""Read the fields of a request one by one; what nobody reads is an error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from causal_onnx.serve.errors import BadRequestError

__all__ = ["Fields"]


class Fields:
    """The fields of a JSON object. One that is null counts as left out."""

    def __init__(self, data: Mapping[str, Any], *, where: str = "") -> None:
        """Take an object.

        Args:
            data: As it came.
            where: What goes before the name of a field in messages, such as `"tools[0]."`.
        """
        self._left = {name: value for name, value in data.items() if value is not None}
        self._where = where
        self._asked: set[str] = set()

    def any(self, name: str) -> Any:
        """Returns the value as it came; None if it was left out."""
        self._asked.add(name)
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        found: str | None = self._of(name, str, "a string")
        return found

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.error(name, "is required, and must be a string")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._of(name, bool, "true or false")
        return default if value is None else bool(value)

    def whole(
        self, name: str, *, least: int = 0, most: int = 1 << 31, default: int | None = None
    ) -> int | None:
        """A whole number in a range."""
        value = self.any(name)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, f"must be a whole number from {least} to {most}, got {value!r}")
        return value

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """A number in a range."""
        value = self.any(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not least <= value <= most or math.isnan(value):
            raise self.error(name, f"must be a number from {least:g} to {most:g}, got {value!r}")
        return float(value)

    def choice(self, name: str, *allowed: str) -> str | None:
        """One of some texts."""
        value = self.any(name)
        if value is not None and value not in allowed:
            raise self.error(name, f"must be {' or '.join(map(repr, allowed))}, got {value!r}")
        return None if value is None else str(value)

    def object(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._of(name, dict, "an object")
        return found

    def list(self, name: str) -> list[Any] | None:
        found: list[Any] | None = self._of(name, list, "a list")
        return found

    def end(self, unsupported: Mapping[str, str]) -> None:
        """Raise where a field is left.

        Args:
            unsupported: Name -> why, of those that are known and not supported.

        Raises:
            BadRequestError: There is one.
        """
        for name in self._left:
            if name in unsupported:
                raise self.error(name, f"is not supported: {unsupported[name]}")
            near = difflib.get_close_matches(name, self._asked, n=1)
            advice = f"did you mean {near[0]}?" if near else "leave it out"
            raise self.error(name, f"is not supported; {advice}")

    def error(self, name: str, what: str) -> BadRequestError:
        """An error about a field."""
        return BadRequestError(f"{self._where}{name} {what}", param=f"{self._where}{name}")

    def _of(self, name: str, kind: type, wanted: str) -> Any:
        value = self.any(name)
        if value is not None and type(value) is not kind:
            raise self.error(name, f"must be {wanted}, got {str(value)[:60]!r}")
        return value
