"""Which replica answers a request: the one that has read how it begins, unless that is busy."""

from __future__ import annotations

import hashlib

from ray.serve.request_router import (
    MultiplexMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

__all__ = ["PrefixRouter", "ranked"]


def ranked(prefix: str | None, loads: dict[str, int], *, imbalance: int) -> list[str]:
    """The names of replicas, the one to ask first in front.

    Each prefix has an order of its own over all replicas (rendezvous hashing), which is the same
    in every router and in which little changes when a replica comes or goes. Those that have
    `imbalance` requests more than the idlest one are asked last, the least busy first.

    Args:
        prefix: How a prompt begins; None: the least busy is asked first.
        loads: Name of a replica -> its requests, as far as they are known.
        imbalance: How many more requests a replica may have than the idlest.
    """
    if not loads:
        return []
    least = min(loads.values())

    def place(name: str) -> tuple[int, bytes]:
        if prefix is None:
            return loads[name], name.encode()
        load = loads[name] if loads[name] - least >= imbalance else -1
        return load, _weight(prefix, name)

    return sorted(loads, key=place)


def _weight(prefix: str, name: str) -> bytes:
    return hashlib.blake2b(prefix.encode("utf-8", "replace"), key=_key(name)).digest()


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=32).digest()


class PrefixRouter(MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """Sends prompts that begin alike to the same replica, which has read the beginning already.

    Where that one has `imbalance` requests more than the idlest, the next of the prefix's own
    order is asked, so that a beginning that all share spreads over as many as it needs.
    """

    def initialize_state(self, *, imbalance: int = 8) -> None:
        """Take what `request_router_kwargs` say.

        Args:
            imbalance: How many more requests a replica may have than the idlest.
        """
        self._imbalance = imbalance

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
        return [[by_name[name]] for name in ranked(prefix, loads, imbalance=self._imbalance)]

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
