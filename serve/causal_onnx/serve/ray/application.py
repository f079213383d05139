"""The Ray Serve application: replicas that hold engines, and an ingress before them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.serve.engine.engine import EngineOptions
from causal_onnx.serve.options import ServeOptions
from causal_onnx.serve.ray.ingress import Ingress
from causal_onnx.serve.ray.replica import replica_class
from causal_onnx.serve.ray.router import PrefixRouter
from causal_onnx.serve.registry import check_adapters, split_name

__all__ = ["RayOptions", "app", "build_app"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """How many processes serve models, and which of them a request comes to."""

    min_replicas: int = 1
    """Processes that hold engines, at least."""
    max_replicas: int = 1
    """At most; Ray adds one where each has more than `target_requests`."""
    target_requests: int | None = None
    """Requests that a replica should have; None: as many as its engine decodes together."""
    models_per_replica: int | None = None
    """Models that a replica holds, loaded as they are asked for; None: all, from the start."""
    prefix_characters: int = 2048
    """How much of a prompt is compared with what replicas have read, to find the one to ask."""
    imbalance: int = 8
    """Requests that a replica may have beyond the idlest, before its prompts go elsewhere."""
    group_s: float = 0.02
    """Seconds that tokens of a stream are collected after the first ones."""
    retry_s: float = 60.0
    """How long a request is tried again after its replica was lost."""
    replica_resources: Mapping[str, Any] = field(default_factory=dict)
    """What a replica needs of a node, as Ray's `ray_actor_options`."""
    ingress_resources: Mapping[str, Any] = field(default_factory=dict)
    """The same of the ingress, such as a resource of the nodes that are not taken away."""
    ingress_replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("min_replicas", "ingress_replicas", "prefix_characters", "imbalance"):
            whole_number(name, getattr(self, name))
        whole_number("max_replicas", self.max_replicas, least=self.min_replicas)
        for name in ("target_requests", "models_per_replica"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name))


def build_app(
    places: Sequence[str],
    options: RayOptions | None = None,
    *,
    engine_options: EngineOptions | None = None,
    serve_options: ServeOptions | None = None,
    device: str = "cpu",
    threads: int | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
) -> serve.Application:
    """The application that serves models on a cluster, for `serve.run`.

    Args:
        places: As for `open_models`; the paths are the same on every node.
        options: How many processes, and which of them a request comes to.
        engine_options: Of each engine.
        serve_options: How requests are taken. Limits of keys count in each replica.
        device: As for `load`.
        threads: As for `load`; None: as many as the node has cores.
        adapters: As for `open_models`; the paths are the same on every node.

    Raises:
        ValueError: An option does not fit, two models have one name, or there are adapters and
            several models.
    """
    options, engine_options = options or RayOptions(), engine_options or EngineOptions()
    serve_options = serve_options or ServeOptions()
    named = [split_name(place) for place in places]
    models = {name: str(path.resolve()) for name, path in named}
    if len(models) < len(named) or not models:
        raise ValueError(f"models need names of their own: NAME=path; got {list(places)}")
    check_adapters(adapters or {}, list(models))
    adapted = {name: str(Path(path).resolve()) for name, path in (adapters or {}).items()}
    replicas = serve.deployment(replica_class(options.models_per_replica)).options(
        name="models",
        max_ongoing_requests=engine_options.sequences + engine_options.queue,
        graceful_shutdown_timeout_s=serve_options.drain_s,
        ray_actor_options=dict(options.replica_resources),
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"imbalance": options.imbalance},
        ),
        **_scale(options, engine_options),
    )
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=options.ingress_replicas,
        max_ongoing_requests=1 << 16,  # the replicas bound what is taken
        graceful_shutdown_timeout_s=serve_options.drain_s,
        ray_actor_options={"num_cpus": 0, **options.ingress_resources},
    )
    bound = replicas.bind(
        models,
        engine_options=engine_options,
        serve_options=serve_options,
        device=device,
        threads=threads,
        group_s=options.group_s,
        loads_lazily=options.models_per_replica is not None,
        adapters=adapted,
    )
    return ingress.bind(
        bound,
        models=list(models),
        adapters=list(adapted),
        is_multiplexed=options.models_per_replica is not None,
        prefix_characters=options.prefix_characters,
        retry_s=options.retry_s,
        max_body_bytes=serve_options.max_body_bytes,
        body_timeout_s=serve_options.body_timeout_s,
    )


def _scale(options: RayOptions, engine_options: EngineOptions) -> dict[str, Any]:
    if options.min_replicas == options.max_replicas:
        return {"num_replicas": options.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_requests or engine_options.sequences,
        }
    }


PLACES = ("models", "adapters")
NUMBERS = ("min_replicas", "max_replicas", "target_requests", "models_per_replica", "imbalance")


def app(args: dict[str, str]) -> serve.Application:
    """What `serve run causal_onnx.serve.ray:app models=PATH,NAME=PATH max_replicas=4` calls.

    Args:
        args: `models`, places with commas between them; `adapters`, such places of LoRA adapters of
            the one model; `threads`; and whole numbers of `RayOptions`.

    Raises:
        ValueError: There is no model, or an argument is not known or no number.
    """
    left = dict(args)
    models, adapters = (
        [place for place in left.pop(name, "").split(",") if place] for name in PLACES
    )
    given: dict[str, Any] = {}
    for name, text in left.items():
        if name not in (*NUMBERS, "threads"):
            known = ", ".join((*PLACES, "threads", *NUMBERS))
            raise ValueError(f"{name!r} is not known; what may be given is {known}")
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f"{name} must be a whole number, got {text!r}")
        given[name] = int(text)
    threads = given.pop("threads", None)
    named = dict(split_name(place) for place in adapters)
    return build_app(models, RayOptions(**given), threads=threads, adapters=named)
