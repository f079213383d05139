"""The certificate: what was proved about a graph and on what, or what stands against it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from causal_onnx.export.analysis.assumptions import AssumptionKind
from causal_onnx.export.proof.confirm import Confirmation
from causal_onnx.export.proof.perturb import DynamicCase, DynamicCheck
from causal_onnx.runtime.contract import FORMAT, read_document
from causal_onnx.runtime.errors import ArtifactError

__all__ = ["Assumption", "Certificate", "CoreFinding", "Offence", "OutputFinding"]

VERDICTS = ("causal", "not_causal", "undecided")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offence:
    """The first violating node: after it, the order of positions cannot be restored."""

    node: str
    op_type: str
    domain: str = ""
    module: str = ""
    """The submodule it was exported from, where the exporter wrote it down."""
    line: str = ""
    """The source line, likewise."""
    reason: str
    witness: str = ""
    """An element that depends on a later position, or, where the verdict is "undecided", may."""

    def __str__(self) -> str:
        domain = f"{self.domain}." if self.domain else ""
        place = ", ".join(text for text in (self.module, self.line) if text)
        return f'{domain}{self.op_type} "{self.node}"' + (f" ({place})" if place else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFinding:
    """One output of the graph."""

    name: str
    position_axes: tuple[int, ...]
    causal: bool | None
    """None: not decided, or nothing to prove where it has no position axis."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreFinding:
    """One attention site: scores, softmax, weighted sum; or the fused operator."""

    node: str
    op_type: str
    footprint: str
    """The mask pattern, which is the set of keys that a query may see: causal | causal window w |
    prefix | full | other, with how positions bias the scores."""
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    scale: float | None = None
    module: str = ""
    problem: str = ""
    """What keeps it from being rewritten in another form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumption:
    """Something the proof rests on beyond the graph."""

    kind: AssumptionKind
    text: str
    """The same for people."""
    nodes: tuple[str, ...] = ()
    """Where it was needed; () where it concerns the whole graph."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The verdict on one graph."""

    verdict: str
    """causal: output t depends on inputs up to t. not_causal: it does not, as a run showed.
    undecided: neither; see offence."""
    scope: str
    """The lengths that the static analysis speaks of: "every length" (within the limits it names),
    or those at which every element was followed."""
    every_length: bool = False
    """The proof is for every length that the graph accepts, not only for those that were tried."""
    reason: str
    """One sentence."""
    offence: Offence | None = None
    inputs: tuple[str, ...] = ()
    """Each input with its axes and role."""
    outputs: tuple[OutputFinding, ...] = ()
    cores: tuple[CoreFinding, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    lengths: tuple[str, ...] = ()
    """Sizes at which every element was followed."""
    open_step: str = ""
    """Where the proof for every length stopped, if it did."""
    refused: tuple[str, ...] = ()
    """Sizes that the graph does not accept, each with the first node that refuses."""
    length_dependent: tuple[str, ...] = ()
    """Position-only values whose first entries change with the length (this is no leak, but a
    KV cache could not be derived)."""
    prefix_stable: bool | None = None
    """Whether outputs stayed the same as more positions followed, in the runtime; None: not run.
    """
    batch_independent: bool | None = None
    """Whether a row of the batch depends on that row alone; None: unknown, or no batch axis."""
    deterministic: bool = True
    confirmation: Confirmation | None = None
    """What running the graph showed about the witness of the static proof; None: it has none."""
    nodes: int = 0
    static_seconds: float = 0.0
    dynamic: DynamicCheck = field(default_factory=DynamicCheck)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {self.verdict!r}")

    @property
    def is_causal(self) -> bool:
        return self.verdict == "causal"

    @property
    def is_prefix_stable(self) -> bool:
        """Nothing found says that early outputs change as the sequence grows."""
        return self.prefix_stable is not False and not self.length_dependent

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """What a verdict of "causal" leaves open, one sentence each."""
        found = []
        if not self.every_length:
            found.append(f"the proof is for {self.scope}, not for every length")
        if not self.is_prefix_stable:
            found.append(f"not prefix-stable: {self._growing()}")
        return tuple(found)

    def _growing(self) -> str:
        names = _aside(_some(self.length_dependent))
        if self.prefix_stable is False:
            return f"early outputs change as the sequence grows{names}"
        return f"values at early positions change as the sequence grows{names}"

    def __str__(self) -> str:
        lines = [f"{self.verdict.replace('_', ' ')}: {self.reason}"]
        if self.offence is not None:
            lines.append(f"  at        {self.offence}")
            if self.offence.witness:
                lines.append(f"  witness   {self.offence.witness}")
        lines.append(
            f"  proved    for {self.scope}" if self.is_causal else f"  tried     {self.scope}"
        )
        lines.extend(f"  input     {text}" for text in self.inputs)
        for out in self.outputs:
            open_ = "undecided" if out.position_axes else "nothing to prove"
            state = {True: "causal", False: "not causal", None: open_}[out.causal]
            along = f" along axis {', '.join(map(str, out.position_axes))}" if out.causal else ""
            lines.append(f"  output    {out.name}: {state}{along}{_aside(out.note)}")
        for text, count in self.core_lines():
            lines.append(f"  attention {text}" + (f"  x {count}" if count > 1 else ""))
        for assumption in self.assumptions:
            lines.append(f"  assumes   {assumption.text}{_aside(_some(assumption.nodes))}")
        if not self.is_prefix_stable:
            lines.append(f"  prefix    not stable: {self._growing()}")
        if self.batch_independent is False:
            lines.append("  note      sequences of the batch depend on each other")
        if not self.deterministic:
            lines.append("  note      the graph draws random numbers")
        lines.append(f"  dynamic   {self._dynamic_line()}")
        lines.append(f"  static    {self.nodes} nodes, {self.static_seconds:.2f} s")
        return "\n".join(lines)

    def core_lines(self) -> list[tuple[str, int]]:
        """Each kind of attention site in words, and how many there are of it."""
        counts: dict[str, int] = {}
        for core in self.cores:
            heads = ""
            if core.num_heads is not None:
                heads = ", one head" if core.num_heads == 1 else f", {core.num_heads} heads"
                if core.num_kv_heads not in (None, core.num_heads):
                    heads += f" over {core.num_kv_heads}"
                if core.head_dim is not None:
                    heads += f" of {core.head_dim}"
            text = f"{core.footprint} ({core.op_type}{heads})" + (
                f": {core.problem}" if core.problem else ""
            )
            counts[text] = counts.get(text, 0) + 1
        return list(counts.items())

    def _dynamic_line(self) -> str:
        check = self.dynamic
        if check.skipped:
            return f"not run: {check.skipped}"
        if check.leaks:
            worst = max(check.leaks, key=lambda case: case.leak)
            return (
                f"LEAK: at length {worst.seq} (past {worst.past_seq}), changing positions >= "
                f"{worst.cut} moved earlier entries of {worst.output} by {worst.leak:.1e}"
            )
        worst_change = max((case.leak for case in check.cases), default=0.0)
        kept = f"within rounding ({worst_change:.0e})" if worst_change else "bit-identical"
        moved = "" if check.moved else "; but no change of the data moved any output"
        return (
            f"{len(check.cases)} perturbation points on {check.provider}, "
            f"the past stayed {kept}{moved} ({check.seconds:.2f} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: The text is not a certificate, or is of a newer format.
        """
        data = read_document(text, what="certificate")
        try:
            return cls._from(data)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the certificate is damaged: {error!r}") from error

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Read what `to_dict` returned.

        Raises:
            ArtifactError: The data is not a certificate, or is of a newer format.
        """
        return cls.from_json(json.dumps(data))

    @classmethod
    def _from(cls, data: dict[str, Any]) -> Certificate:
        dynamic = dict(data["dynamic"])
        dynamic["cases"] = tuple(DynamicCase(**case) for case in dynamic["cases"])
        dynamic["refused"] = tuple(dynamic["refused"])
        changes: dict[str, Any] = {
            "offence": None if data["offence"] is None else Offence(**data["offence"]),
            "outputs": tuple(
                OutputFinding(**{**item, "position_axes": tuple(item["position_axes"])})
                for item in data["outputs"]
            ),
            "cores": tuple(CoreFinding(**item) for item in data["cores"]),
            "assumptions": tuple(
                Assumption(
                    kind=AssumptionKind(item.get("kind", AssumptionKind.OTHER)),
                    text=item["text"],
                    nodes=tuple(item["nodes"]),
                )
                for item in data["assumptions"]
            ),
            "dynamic": DynamicCheck(**dynamic),
        }
        if data.get("confirmation") is not None:  # files of before have none
            changes["confirmation"] = Confirmation(**data["confirmation"])
        for name in ("inputs", "lengths", "refused", "length_dependent"):
            changes[name] = tuple(data[name])
        return cls(**{**data, **changes})


def _aside(text: str) -> str:
    return f" ({text})" if text else ""


def _some(names: tuple[str, ...]) -> str:
    """The first few names, and how many more."""
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more"
