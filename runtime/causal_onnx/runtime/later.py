"""What is imported when it is first asked for: whoever only runs a model need not wait for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Later"]


class Later:
    """A function of another module as a method of the same name; it takes the place of this."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type) -> Any:
        function = getattr(import_module(self._module), self._name)
        setattr(self._owner, self._name, function)
        return function.__get__(instance, owner)
