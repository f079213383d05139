"""Which replica answers a request: the one that has read most of its beginning, unless busy."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.request_router import (
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

__all__ = ["Beginnings", "PrefixRouter", "ranked"]

CHUNK = 64
"""Characters that are told apart at once."""


def ranked(
    prefix: str | None,
    loads: Mapping[str, int],
    *,
    imbalance: int,
    read: Mapping[str, int] | None = None,
) -> list[str]:
    """The names of replicas, the one to ask first in front.

    First come those that have read most of the prompt's beginning. Among equals, the first
    characters have an order of their own over all replicas (rendezvous hashing), which is the same
    in every router and in which little changes when a replica comes or goes. Those that have
    `imbalance` requests more than the idlest one are asked last, the least busy first.

    Args:
        prefix: How a prompt begins; None: the least busy is asked first.
        loads: Name of a replica -> its requests, as far as they are known.
        imbalance: How many more requests a replica may have than the idlest.
        read: Name of a replica -> how much of the beginning it has read; none: nothing.
    """
    if not loads:
        return []
    least = min(loads.values())

    def place(name: str) -> tuple[int, int, bytes]:
        if prefix is None:
            return loads[name], 0, name.encode()
        load = loads[name] if loads[name] - least >= imbalance else -1
        return load, -(read or {}).get(name, 0), _weight(prefix[:CHUNK], name)

    return sorted(loads, key=place)


class Beginnings:
    """Which replicas have read which beginnings of prompts, as far as this router knows."""

    def __init__(self, most: int = 1 << 16) -> None:
        """Remember at most so many beginnings, those used last."""
        self._most = most
        self._readers: OrderedDict[bytes, set[str]] = OrderedDict()

    def note(self, prefix: str, name: str) -> None:
        """Remember that a replica was given a prompt that begins so."""
        for digest in _digests(prefix):
            self._readers.setdefault(digest, set()).add(name)
            self._readers.move_to_end(digest)
        while len(self._readers) > self._most:
            self._readers.popitem(last=False)

    def read(self, prefix: str) -> dict[str, int]:
        """Name of a replica -> how many chunks of the beginning it was given."""
        found: dict[str, int] = {}
        for count, digest in enumerate(_digests(prefix), 1):
            found |= dict.fromkeys(self._readers.get(digest, ()), count)
        return found


def _digests(prefix: str) -> Sequence[bytes]:
    """Of everything up to the end of each whole chunk."""
    digest, found = hashlib.blake2b(digest_size=16), []
    for end in range(CHUNK, len(prefix) + 1, CHUNK):
        digest.update(prefix[end - CHUNK : end].encode("utf-8", "replace"))
        found.append(digest.copy().digest())
    return found


def _weight(prefix: str, name: str) -> bytes:
    return hashlib.blake2b(prefix.encode("utf-8", "replace"), key=_key(name)).digest()


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=32).digest()


class PrefixRouter(MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """Sends a prompt to the replica that has read most of its beginning, as of a conversation.

    Where that one has `imbalance` requests more than the idlest, another is asked, which then has
    read the beginning too: one that all share spreads over as many replicas as it needs.
    """

    def initialize_state(self, *, imbalance: int = 8) -> None:
        """Take what `request_router_kwargs` say.

        Args:
            imbalance: How many more requests a replica may have than the idlest.
        """
        self._imbalance = imbalance
        self._beginnings = Beginnings()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas, each a rank of its own, in the order in which they are asked."""
        candidates = self._with_model(candidate_replicas, pending_request)
        if pending_request is not None:  # else Ray asks again at once where all are busy
            pending_request.routing_context.should_backoff = True
        by_name = {item.replica_id.unique_id: item for item in candidates}
        loads = {
            name: self.replica_queue_len_cache.get(item.replica_id) or 0
            for name, item in by_name.items()
        }
        prefix = _prefix_of(pending_request)
        read = None if prefix is None else self._beginnings.read(prefix)
        order = ranked(prefix, loads, imbalance=self._imbalance, read=read)
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Remember which replica took a prompt."""
        prefix = _prefix_of(pending_request)
        if prefix is not None:
            self._beginnings.note(prefix, replica_id.unique_id)

    def _with_model(
        self, replicas: list[RunningReplica], request: PendingRequest | None
    ) -> list[RunningReplica]:
        """Those that have the model of a request, where models are loaded when they are asked."""
        if request is None or not request.metadata.multiplexed_model_id:
            return replicas
        wanted = self.apply_multiplex_routing(pending_request=request) or ()
        found = [item for item in replicas if item.replica_id in wanted]
        return found or replicas


def _prefix_of(request: PendingRequest | None) -> str | None:
    if request is None or not request.args:
        return None
    return getattr(request.args[0], "prefix", None)
