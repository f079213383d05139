"""Who may ask: keys, kept as hashes, each with its limits."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json_object
from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.serve.errors import BusyError

__all__ = ["ApiKey", "Quota", "find_key", "new_key", "read_keys"]

HASH = re.compile(r"[0-9a-f]{64}")
MINUTE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A client's key, kept as a hash, with its limits."""

    name: str
    """The name of its owner, for the logs."""
    sha256: str
    """The SHA-256 of the key in 64 hexadecimal digits; the key itself is not stored."""
    requests_per_minute: int | None = None
    """None: no limit."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers together; None: no limit."""
    concurrent: int | None = None
    """The most requests at once; None: no limit."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a key needs a name, got {self.name!r}")
        if not isinstance(self.sha256, str) or not HASH.fullmatch(self.sha256):
            raise ValueError(f"the key of {self.name} needs its sha256, 64 hexadecimal digits")
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
            if getattr(self, name) is not None:
                whole_number(f"{name} of {self.name}", getattr(self, name))


def new_key() -> tuple[str, str]:
    """Returns a new random key, and its SHA-256 in hexadecimal digits."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys: `{"keys": [{"name": "alice", "sha256": "..."}, ...]}`.

    Raises:
        OSError: The file cannot be read.
        ArtifactError: The file does not have this form, or two keys have the same name or hash.
    """
    data = read_json_object(path)
    items = data.pop("keys", None)
    if data or not isinstance(items, list) or not items:
        raise ArtifactError(f'{path} must hold {{"keys": [{{"name": ..., "sha256": ...}}, ...]}}')
    try:
        keys = tuple(_key_of(item) for item in items)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    for field in ("name", "sha256"):
        if len({getattr(key, field) for key in keys}) < len(keys):
            raise ArtifactError(f"{path}: two keys have the same {field}")
    return keys


def _key_of(item: object) -> ApiKey:
    """The key that an item of the file describes; raises ValueError if it describes none."""
    known = {field.name for field in fields(ApiKey)}
    if not isinstance(item, dict) or not {"name", "sha256"} <= set(item) <= known:
        found = sorted(item) if isinstance(item, dict) else item
        raise ValueError(
            "a key must be an object with name and sha256; it may have requests_per_minute, "
            f"tokens_per_minute and concurrent; got {found}"
        )
    return ApiKey(**item)


def find_key(keys: Sequence[ApiKey], given: str) -> ApiKey | None:
    """Returns the key that a client sent, or None; the time taken does not depend on which."""
    digest, found = hashlib.sha256(given.encode("utf-8", "surrogateescape")).hexdigest(), None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


class Quota:
    """What one key has used of its limits; for an event loop, not for threads."""

    def __init__(self, key: ApiKey) -> None:
        self._key = key
        self._running = 0
        # So much may be used at once, and comes back within a minute.
        self._left = {
            "requests": _most(key.requests_per_minute),
            "tokens": _most(key.tokens_per_minute),
        }
        self._most = dict(self._left)
        self._seen = time.monotonic()

    def begin(self) -> None:
        """Take up a request.

        Raises:
            BusyError: A limit is reached; it says when to come again.
        """
        self._refill()
        key = self._key
        if key.concurrent is not None and self._running >= key.concurrent:
            raise self._refusal(
                f"{self._running} requests of this key are running, which is its limit", 1
            )
        for kind, least in (("requests", 1.0), ("tokens", 0.0)):
            # Tokens are known afterwards: what was used beyond the limit must come back first.
            if self._left[kind] < least:
                wait = (least - self._left[kind]) / self._most[kind] * MINUTE_S
                raise self._refusal(
                    f"this key may use {self._most[kind]:g} {kind} a minute", int(wait) + 1
                )
        self._left["requests"] -= 1
        self._running += 1

    def end(self, tokens: int) -> None:
        """A request has ended, which used so many tokens."""
        self._running -= 1
        self._left["tokens"] -= tokens

    def _refill(self) -> None:
        now = time.monotonic()
        share, self._seen = (now - self._seen) / MINUTE_S, now
        for kind, most in self._most.items():
            self._left[kind] = min(most, self._left[kind] + share * most)

    def _refusal(self, message: str, wait_s: int) -> BusyError:
        error = BusyError(f"{message}; come again in {wait_s} s", code="rate_limit_exceeded")
        error.retry_after_s = wait_s
        return error


def _most(limit: int | None) -> float:
    return float("inf") if limit is None else float(limit)
