"""Modules that a proof of causality must reject, each broken in one way.

Most are hosts of three parts: `first` is a good causal attention, `middle` is broken, `last` is
token-wise. A finding should name `middle`, or the path given, and not the honest parts around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from .beside import MEMORY, PAIRS, Fused, Masked, Remembering, bias, given, memory
from .entry import Inputs, features, ids, seeded, with_padding_mask
from .own_caches import DIM, HEAD_DIM, Cached, past_kv

__all__ = ["MUTANTS", "Mutant"]

KINDS = ("leak", "length", "footprint")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One broken module."""

    name: str
    factory: Callable[[], nn.Module]
    """As `ZooEntry.factory`."""
    inputs: Callable[..., tuple[Tensor, ...]]
    axes: tuple[Mapping[int, str], ...]
    roles: tuple[str, ...]
    breaks: str
    """Path of the submodule that a finding should name."""
    origin: str
    """How this mistake comes about."""
    operators: tuple[str, ...] = ()
    """ONNX operators of which a finding should name one; empty: it depends on the exporter."""
    kind: str = "leak"
    """"leak": an output depends on later tokens; "length": on how many there are; "footprint":
    causal, but the attention does not see what was declared."""
    declared: str = "causal"
    """What the author says each query sees, in the words of `ZooEntry.footprint`."""
    limit: int | None = None
    shows_from: int = 4
    """The shortest length at which the defect shows."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind is one of {', '.join(KINDS)}, got {self.kind!r}")


_mutants: list[Mutant] = []


def _declare(
    name: str,
    build: Callable[[], nn.Module],
    *,
    origin: str,
    inputs: Inputs | None = None,
    breaks: str = "middle",
    **rest: Any,
) -> None:
    given = inputs or features(DIM)
    _mutants.append(
        Mutant(
            name=name,
            factory=lambda: seeded(build, seed=7),
            inputs=given.make,
            axes=given.axes,
            roles=given.roles,
            breaks=breaks,
            origin=origin,
            **rest,
        )
    )


def mutant(name: str, *args: Any, **rest: Any) -> Callable[[Any], Any]:
    """Declare the decorated module as the broken middle of a `Host`."""

    def register(cls: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _declare(name, lambda: Host(cls(*args)), **rest)
        return cls

    return register


def alone(name: str, *args: Any, breaks: str, **rest: Any) -> Callable[[Any], Any]:
    """Declare the decorated module as a mutant by itself."""

    def register(cls: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _declare(name, lambda: cls(*args), breaks=breaks, **rest)
        return cls

    return register


class Good(nn.Module):
    """Honest causal attention, for the broken ones to differ from in one place."""

    def __init__(self, dim: int = DIM, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        return self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / q.size(-1) ** 0.5

    def hidden(self, n: int) -> Tensor:
        """(n, n), True where the key of the column must not be seen."""
        return torch.ones(n, n, dtype=torch.bool).triu(1)

    def weights(self, s: Tensor) -> Tensor:
        return s.masked_fill(self.hidden(s.size(-1)), float("-inf")).softmax(-1)

    def merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.merge(self.weights(self.scores(q, k)) @ v)


class Host(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = Good()
        self.middle = middle
        # No norm here: it would hide what a middle adds to, or scales in, all features alike.
        self.last = nn.Sequential(nn.Linear(DIM, 24), nn.GELU(), nn.Linear(24, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return self.last(self.middle(x))


CORE = ("Softmax", "Attention", "MatMul", "Einsum")
"""A broken attention core may be named by any of its parts."""


@mutant("mask_inverted", origin="tril where triu was meant", operators=CORE)
class MaskInverted(Good):
    def hidden(self, n):
        return torch.ones(n, n, dtype=torch.bool).tril(-1)


@mutant(
    "mask_loses_self_row_0_sees_all",
    origin="diagonal=0 with -1e9: the first row is masked whole and averages every position",
    operators=CORE,
)
class MaskLosesSelf(Good):
    def weights(self, s):
        n = s.size(-1)
        return s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(0), -1e9).softmax(-1)


@mutant(
    "mask_loses_self_row_0_zeroed",
    origin="diagonal=0 with -inf and nan_to_num: every token sees strictly earlier ones only",
    kind="footprint",
    operators=CORE,
)
class MaskLosesSelfZeroed(Good):
    def weights(self, s):
        n = s.size(-1)
        s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(0), float("-inf"))
        return s.softmax(-1).nan_to_num()


@mutant("mask_one_token_ahead", origin="diagonal=2: one future token is seen", operators=CORE)
class MaskOneAhead(Good):
    def hidden(self, n):
        return torch.ones(n, n, dtype=torch.bool).triu(2)


@mutant("mask_dropped", origin="no mask at all", operators=CORE)
class MaskDropped(Good):
    def weights(self, s):
        return s.softmax(-1)


@mutant("mask_dropped_sdpa", origin="is_causal left at False", operators=CORE)
class MaskDroppedSdpa(Good):
    def forward(self, x):
        return self.merge(F.scaled_dot_product_attention(*self.split(x)))


@mutant("mask_dropped_in_one_head", origin="the mask forgotten for the last head", operators=CORE)
class MaskDroppedInOneHead(Good):
    def weights(self, s):
        per_head = torch.stack((self.hidden(s.size(-1)), torch.zeros(s.shape[-2:]).bool()))
        return s.masked_fill(per_head, float("-inf")).softmax(-1)


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@mutant(
    "mask_dropped_in_one_layer",
    origin="one of three layers built without its mask",
    breaks="middle.layers.1",
    operators=CORE,
)
def one_layer_unmasked() -> nn.Module:
    return Layers(Good(), MaskDropped(), Good())


@mutant(
    "mask_after_softmax",
    origin="softmax over everything, then the future zeroed: it stays in the denominator",
    operators=CORE,
)
class MaskAfterSoftmax(Good):
    def weights(self, s):
        return s.softmax(-1).masked_fill(self.hidden(s.size(-1)), 0.0)


@mutant(
    "mask_after_softmax_wrong_sum",
    origin="renormalised by the sum before the mask",
    operators=CORE,
)
class MaskAfterSoftmaxWrongSum(Good):
    def weights(self, s):
        e = s.exp()
        return e * ~self.hidden(s.size(-1)) / e.sum(-1, keepdim=True)


@mutant("softmax_over_queries", origin="softmax(dim=-2), the wrong axis", operators=CORE)
class SoftmaxOverQueries(Good):
    def weights(self, s):
        return s.masked_fill(self.hidden(s.size(-1)), float("-inf")).softmax(-2)


@mutant(
    "mask_baked_at_seven",
    origin="a mask made for the traced length, longer inputs unmasked beyond it",
    shows_from=9,
    operators=CORE,
)
class MaskBaked(Good):
    def hidden(self, n):
        whole = torch.zeros(n, n, dtype=torch.bool)
        size = min(n, 7)
        whole[:size, :size] = torch.ones(7, 7, dtype=torch.bool).triu(1)[:size, :size]
        return whole


@mutant(
    "mask_baked_rows_only",
    origin="rows past the traced length pad the mask with zeros",
    limit=24,
    shows_from=9,
    operators=CORE,
)
class MaskPadded(Good):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(7, 24, dtype=torch.bool).triu(1))

    def hidden(self, n):
        return F.pad(self.mask, (0, 0, 0, 24 - 7))[:n, :n]


@mutant(
    "mask_one_by_one",
    origin="a mask exported at length 1: [1, 1] broadcast over everything",
    operators=CORE,
)
class MaskOneByOne(Good):
    def hidden(self, n):
        return torch.ones(1, 1, dtype=torch.bool).triu(1)


@mutant(
    "mask_from_padded_binding",
    origin="lower-right alignment to the capacity of a padded buffer, then cut to the input",
    operators=CORE,
)
class MaskFromPadded(Good):
    def hidden(self, n):
        capacity = 32
        return torch.ones(n, capacity, dtype=torch.bool).triu(capacity - n + 1)[:, :n]


@mutant(
    "mask_too_small",
    origin="a mask value of -1e-3, a slip for -1e30",
    operators=CORE,
)
class MaskTooSmall(Good):
    def weights(self, s):
        return (s + -1e-3 * self.hidden(s.size(-1))).softmax(-1)


@mutant("mask_minus_ten", origin="a mask value that large scores overcome", operators=CORE)
class MaskMinusTen(Good):
    def weights(self, s):
        return s.masked_fill(self.hidden(s.size(-1)), -10.0).softmax(-1)


@mutant(
    "mask_scaled_away",
    origin="the mask added before the scores are divided by a large temperature",
    operators=CORE,
)
class MaskScaledAway(Good):
    def weights(self, s):
        return ((s * 30 - 100.0 * self.hidden(s.size(-1))) / 30).softmax(-1)


@mutant("mask_multiplied", origin="scores times a 0/1 triangle: exp(0) is not 0", operators=CORE)
class MaskMultiplied(Good):
    def weights(self, s):
        return (s * ~self.hidden(s.size(-1))).softmax(-1)


@mutant(
    "mask_under_softcap",
    origin="the tanh cap applied after the mask: -inf becomes -cap",
    operators=CORE,
)
class MaskUnderSoftcap(Good):
    def weights(self, s):
        s = s.masked_fill(self.hidden(s.size(-1)), float("-inf"))
        return (5.0 * torch.tanh(s / 5.0)).softmax(-1)


@mutant(
    "mask_clamped_away",
    origin="scores clamped after the mask, to keep half precision finite",
    operators=CORE,
)
class MaskClamped(Good):
    def weights(self, s):
        s = s.masked_fill(self.hidden(s.size(-1)), float("-inf"))
        return s.clamp(min=-8.0, max=8.0).softmax(-1)


@mutant(
    "mask_first_batch_row_only",
    origin="scores[0] masked in place, the other rows of the batch not",
    operators=CORE,
)
class MaskFirstRow(Good):
    def weights(self, s):
        rows = torch.arange(s.size(0)).view(-1, 1, 1, 1) == 0
        return s.masked_fill(self.hidden(s.size(-1)) & rows, float("-inf")).softmax(-1)


@mutant(
    "mask_meaning_swapped_sdpa",
    origin="True means ignore in nn.MultiheadAttention and attend in SDPA",
    operators=CORE,
)
class MaskMeaningSwapped(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        mask = self.hidden(x.size(1)) | torch.eye(x.size(1), dtype=torch.bool)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@mutant("mask_transposed", origin="the triangle transposed once too often", operators=CORE)
class MaskTransposed(Good):
    def hidden(self, n):
        return super().hidden(n).T


@mutant(
    "mask_block_causal",
    origin="whole blocks of 4 see each other",
    operators=CORE,
)
class MaskBlockCausal(Good):
    def hidden(self, n):
        block = torch.arange(n) // 4
        return block[None, :] > block[:, None]


@mutant(
    "mask_prefix_lm",
    origin="the first four tokens see each other",
    declared="causal",
    operators=CORE,
)
class MaskPrefix(Good):
    def hidden(self, n):
        return super().hidden(n) & (torch.arange(n)[None, :] >= 4)


@mutant(
    "mask_window_symmetric",
    origin="|i - j| < window: as much future as past",
    declared="window:4",
    operators=CORE,
)
class MaskSymmetricWindow(Good):
    def hidden(self, n):
        i = torch.arange(n)
        return (i[:, None] - i[None, :]).abs() >= 4


@mutant(
    "mask_window_one_too_wide",
    4,
    origin="window keys and the query itself: one more than declared",
    kind="footprint",
    declared="window:4",
    shows_from=6,
    operators=CORE,
)
@mutant(
    "mask_window_one_too_narrow",
    2,
    origin="a strict comparison: one key less than declared",
    kind="footprint",
    declared="window:4",
    shows_from=6,
    operators=CORE,
)
class MaskWindowOff(Good):
    def __init__(self, reach):
        super().__init__()
        self.reach = reach

    def hidden(self, n):
        delta = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        return (delta < 0) | (delta > self.reach)


@mutant(
    "mask_window_dropped",
    origin="a window lost on the way: the whole past is seen",
    kind="footprint",
    declared="window:4",
    shows_from=6,
    operators=CORE,
)
class MaskWindowDropped(Good):
    pass


@mutant(
    "mask_strided_hole",
    origin="a causal mask with every third key missing",
    kind="footprint",
    shows_from=5,
    operators=CORE,
)
class MaskWithHole(Good):
    def hidden(self, n):
        i = torch.arange(n)
        hole = (i[None, :] % 3 == 1) & (i[None, :] != i[:, None])
        return super().hidden(n) | hole


@mutant(
    "mask_depends_on_data",
    origin="loud tokens are shown to everyone",
    operators=(*CORE, "Where", "Or", "Greater"),
)
class MaskByData(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        loud = (x[..., 0] > 0.5)[:, None, None, :]
        s = self.scores(q, k).masked_fill(self.hidden(x.size(1)) & ~loud, float("-inf"))
        return self.merge(s.softmax(-1) @ v)


@mutant(
    "mask_on_one_of_two_softmaxes",
    origin="differential attention whose second map is not masked",
    operators=CORE,
)
class HalfDifferential(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        s = self.scores(q, k)
        return self.merge((self.weights(s) - 0.3 * s.neg().softmax(-1)) @ v)


@alone(
    "mask_padding_only",
    inputs=with_padding_mask(features(DIM), side="right", dtype=torch.bool),
    breaks="attn",
    origin="the attention mask given is the only mask",
    operators=CORE,
)
class PaddingOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Good()

    def forward(self, x, keep):
        q, k, v = self.attn.split(x)
        allowed = keep[:, None, None, :]
        return self.attn.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


@mutant(
    "alibi_without_mask",
    origin="a distance penalty taken for a mask",
    operators=CORE,
)
class AlibiOnly(Good):
    def weights(self, s):
        i = torch.arange(s.size(-1))
        return (s - 0.7 * (i[:, None] - i[None, :]).abs()).softmax(-1)


@mutant("keys_reversed", origin="keys and values in reversed order", operators=CORE)
class KeysReversed(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        return self.merge(self.weights(self.scores(q, k.flip(2))) @ v.flip(2))


@mutant(
    "heads_split_without_transpose",
    origin="view(batch, heads, seq, dim) straight from (batch, seq, width)",
    operators=("Reshape", *CORE),
)
class SplitWithoutTranspose(Good):
    def split(self, x):
        b, n, d = x.shape
        return tuple(t.reshape(b, self.heads, n, -1) for t in self.qkv(x).split(d, dim=-1))


@mutant(
    "heads_merged_without_transpose",
    origin="(batch, heads, seq, dim) reshaped to (batch, seq, width) without a transpose",
    operators=("Reshape",),
)
class MergeWithoutTranspose(Good):
    def merge(self, y):
        return self.out(y.reshape(y.size(0), y.size(2), -1))


@mutant(
    "weights_transposed",
    origin="A^T V in the place of A V",
    operators=("MatMul", "Transpose", "Gemm", "Einsum"),
)
class WeightsTransposed(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        return self.merge(self.weights(self.scores(q, k)).mT @ v)


class Library(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@mutant(
    "encoder_without_mask",
    origin="nn.TransformerEncoder called without its mask",
    operators=CORE,
)
def encoder_without_mask() -> nn.Module:
    layer = nn.TransformerEncoderLayer(DIM, 2, 24, batch_first=True)
    return Library(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))


@mutant(
    "decoder_memory_unmasked",
    origin="a decoder layer that reads the whole input as its memory",
    operators=CORE,
)
class DecoderMemory(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(DIM, 2, 24, batch_first=True)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1))
        return self.layer(x, x, tgt_mask=mask)


@mutant("mean_over_time", origin="the mean of the sequence added", operators=("ReduceMean",))
class MeanOverTime(nn.Module):
    def forward(self, x):
        return x + x.mean(dim=1, keepdim=True)


@mutant("max_over_time", origin="the maximum of the sequence", operators=("ReduceMax",))
class MaxOverTime(nn.Module):
    def forward(self, x):
        return x - x.amax(dim=1, keepdim=True)


@mutant(
    "dynamic_scale_over_tensor",
    origin="activations quantised by the largest value of the whole tensor",
    operators=("ReduceMax",),
)
class DynamicScale(nn.Module):
    def forward(self, x):
        return x / x.abs().max() * 3


@mutant("time_reversed", origin="a flip that is not undone", operators=("Slice", "Gather"))
class TimeReversed(nn.Module):
    def forward(self, x):
        return x.flip(1)


@mutant(
    "batchnorm_of_the_batch",
    origin="BatchNorm that normalises by the statistics of the input, time included",
    operators=("BatchNormalization", "ReduceMean", "ReduceSum"),
)
class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(DIM, track_running_stats=False)

    def forward(self, x):
        return self.bn(x.transpose(1, 2)).transpose(1, 2)


@mutant(
    "instance_norm_over_time",
    origin="InstanceNorm over the sequence",
    operators=("InstanceNormalization", "ReduceMean", "BatchNormalization", "Reshape"),
)
class InstanceNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(DIM)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


@mutant(
    "group_norm_over_time",
    origin="GroupNorm on (batch, channels, time): its groups span time",
    operators=("GroupNormalization", "InstanceNormalization", "ReduceMean", "Reshape"),
)
class GroupNormTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, DIM)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


@mutant(
    "layernorm_over_time",
    origin="layer_norm over the last axis of a transposed tensor, which is time",
    operators=("LayerNormalization", "ReduceMean"),
)
class LayerNormTime(nn.Module):
    def forward(self, x):
        h = x.transpose(1, 2)
        return F.layer_norm(h, (h.shape[-1],)).transpose(1, 2)


@mutant(
    "standardised_series",
    origin="a series normalised by its own mean and deviation",
    operators=("ReduceMean", "ReduceSum"),
)
class Standardised(nn.Module):
    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, unbiased=False) + 1e-3)


@mutant("softmax_over_time", origin="a gate by softmax over time", operators=("Softmax",))
class SoftmaxOverTime(nn.Module):
    def forward(self, x):
        return x * x.softmax(dim=1)


@mutant("conv_symmetric", (1, 1), origin="padding='same' in a convolution", operators=("Conv",))
@mutant("conv_future", (0, 2), origin="padded on the wrong side", operators=("Conv",))
class ConvPadded(nn.Module):
    def __init__(self, pad):
        super().__init__()
        self.pad, self.conv = pad, nn.Conv1d(DIM, DIM, 3, groups=DIM)

    def forward(self, x):
        return x + self.conv(F.pad(x.transpose(1, 2), self.pad)).transpose(1, 2)


@mutant(
    "conv_dilated_future",
    origin="a dilated convolution with padding on both sides",
    operators=("Conv",),
)
class ConvDilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(DIM, DIM, 3, padding=2, dilation=2)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


@mutant(
    "conv_chomp_forgotten",
    origin="a causal convolution cut at the wrong end",
    operators=("Conv", "Slice"),
)
class ConvChomp(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(DIM, DIM, 3, padding=2)

    def forward(self, x):
        return self.conv(x.transpose(1, 2))[..., 2:].transpose(1, 2)


@mutant("gru_bidirectional", origin="bidirectional=True", operators=("GRU",))
class Bidirectional(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(DIM, DIM // 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.gru(x)[0]


@mutant("roll_by_minus_one", origin="torch.roll(x, -1)", operators=("Slice", "Concat"))
class RollBack(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, -1, dims=1)


@mutant("roll_wraps_around", origin="torch.roll(x, 1), not zeroed", operators=("Slice", "Concat"))
class RollWraps(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, 1, dims=1)


@mutant(
    "next_token_padded",
    origin="x[:, 1:] padded at the end, a shifted target left in the input",
    operators=("Slice", "Pad", "Concat"),
)
class NextToken(nn.Module):
    def forward(self, x):
        return x + 0.5 * F.pad(x[:, 1:], (0, 0, 0, 1))


@mutant(
    "next_token_gathered",
    origin="gather with arange + 1, clamped at the end",
    operators=("Gather",),
)
class NextGathered(nn.Module):
    def forward(self, x):
        at = (torch.arange(x.size(1)) + 1).clamp(max=x.size(1) - 1)
        return x + x.index_select(1, at)


@mutant(
    "squeeze_excite",
    origin="a channel gate from the mean over time",
    operators=("ReduceMean", "GlobalAveragePool"),
)
class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(DIM, 4), nn.Linear(4, DIM)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean(1))))).unsqueeze(1)


@mutant("sort_over_time", origin="sorted along the sequence", operators=("TopK",))
class SortOverTime(nn.Module):
    def forward(self, x):
        return x + x.sort(dim=1).values


@mutant(
    "cumsum_from_the_right",
    origin="a running sum of what is still to come",
    operators=("CumSum", "Slice", "ReduceSum"),
)
class CumsumRight(nn.Module):
    def forward(self, x):
        return x + x.flip(1).cumsum(1).flip(1) / 8


@mutant("fft_over_time", origin="a Fourier mixing layer", operators=("DFT",))
class FourierMixing(nn.Module):
    def forward(self, x):
        return x + torch.fft.fft(x, dim=1).real / 4


@mutant(
    "last_token_broadcast",
    origin="the last position's features added to all",
    operators=("Slice", "Gather"),
)
class LastToken(nn.Module):
    def forward(self, x):
        return x + x[:, -1:, :]


@mutant(
    "summary_token_at_the_end",
    origin="a summary token appended last, its output added to every position",
    operators=("Slice", "Gather"),
)
class SummaryToken(Good):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, DIM))

    def forward(self, x):
        y = super().forward(torch.cat((x, self.token.expand(x.size(0), -1, -1)), dim=1))
        return y[:, :-1] + y[:, -1:]


@mutant(
    "expert_choice_routing",
    origin="each expert picks its tokens over the whole sequence",
    operators=("TopK", "Softmax"),
)
class ExpertChoice(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.expert = nn.Linear(DIM, 1), nn.Linear(DIM, DIM)

    def forward(self, x):
        score = self.router(x).squeeze(-1)
        picked = score.topk(2, dim=1).indices
        chosen = torch.zeros_like(score).scatter(1, picked, 1.0).unsqueeze(-1)
        return x + chosen * self.expert(x)


@mutant(
    "argmax_over_time",
    origin="the loudest position looked up for every other",
    operators=("ArgMax", "TopK", "Gather", "GatherElements"),
)
class ArgmaxOverTime(nn.Module):
    def forward(self, x):
        loudest = x.norm(dim=-1).argmax(dim=1)
        return x + x.gather(1, loudest[:, None, None].expand(-1, 1, x.size(-1)))


@mutant(
    "pooled_pairs_repeated",
    origin="pairs averaged and repeated back without a shift",
    operators=("ReduceMean", "AveragePool", "Reshape"),
)
class PooledPairs(nn.Module):
    def forward(self, x):
        n = x.size(1)
        pairs = F.pad(x, (0, 0, 0, n % 2)).unflatten(1, (-1, 2)).mean(2)
        return x + pairs.repeat_interleave(2, dim=1)[:, :n]


@mutant(
    "average_pool_centred",
    origin="a centred moving average",
    operators=("AveragePool",),
)
class CentredAverage(nn.Module):
    def forward(self, x):
        return F.avg_pool1d(x.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2)


@mutant(
    "linear_attention_without_scan",
    origin="linear attention that sums over the whole sequence",
    operators=("MatMul", "Einsum", "ReduceSum"),
)
class LinearGlobal(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        z = q @ k.sum(2).unsqueeze(-1)
        return self.merge(q @ (k.mT @ v) / z)


@mutant(
    "decay_by_absolute_distance",
    origin="retention with gamma^|i - j|",
    operators=("MatMul",),
)
class DecayAbsolute(Good):
    def forward(self, x):
        q, k, v = self.split(x)
        i = torch.arange(x.size(1))
        return self.merge((self.scores(q, k) * 0.8 ** (i[:, None] - i[None, :]).abs()) @ v)


@mutant(
    "position_mixing_without_triangle",
    origin="a learned position matrix that was not cut by tril",
    limit=24,
    operators=("MatMul", "Einsum", "Gemm"),
)
class PositionMixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(24, 24) / 5)

    def forward(self, x):
        n = x.size(1)
        return x + torch.einsum("mn,bnd->bmd", self.w[:n, :n], x)


@mutant(
    "covariance_over_time",
    origin="features whitened by their covariance over the sequence",
    operators=("MatMul", "Einsum", "ReduceMean"),
)
class Covariance(nn.Module):
    def forward(self, x):
        return x @ (x.mT @ x) / x.shape[1]


@alone(
    "embedding_of_next_id",
    inputs=ids(29),
    breaks="emb",
    origin="the next token's embedding joined as a feature",
    operators=("Slice", "Pad", "Concat", "Gather"),
)
class NextIdEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.attn = nn.Embedding(29, DIM), Good()

    def forward(self, idx):
        following = F.pad(idx[:, 1:], (0, 1))
        return self.attn(self.emb(idx) + 0.3 * self.emb(following))


@alone(
    "any_padding_id_anywhere",
    inputs=ids(29),
    breaks="emb",
    origin="an embedding added if an id occurs anywhere in the row",
    operators=("ReduceMax", "ReduceSum", "ReduceMin"),
)
class AnyIdAnywhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.attn = nn.Embedding(29, DIM), Good()

    def forward(self, idx):
        even = (idx % 2).sum(dim=1, keepdim=True).unsqueeze(-1)
        return self.attn(self.emb(idx)) + even


@alone(
    "cache_upper_left",
    inputs=past_kv(),
    breaks="",
    kind="footprint",
    origin="upper-left alignment with a past: the query does not see itself",
    operators=CORE,
)
class UpperLeftWithPast(Cached):
    offset = 0

    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        diagonal = self.offset * past_key.size(2)
        mask = torch.ones(x.size(1), k.size(2), dtype=torch.bool).tril(diagonal)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), k, v


@alone(
    "cache_offset_twice",
    inputs=past_kv(),
    breaks="",
    origin="the length of the past added twice to the diagonal",
    operators=CORE,
)
class OffsetTwice(UpperLeftWithPast):
    offset = 2


@alone(
    "cache_is_causal_only_without_past",
    inputs=past_kv(),
    breaks="",
    origin="no mask at all once there is a past, though several queries come",
    operators=CORE,
)
class NoMaskWithPast(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        return self.merge((q @ k.mT / HEAD_DIM**0.5).softmax(-1) @ v), k, v


@alone(
    "cache_joined_in_wrong_order",
    inputs=past_kv(),
    breaks="",
    origin="the present before the past in the join, the mask as if after it",
    operators=CORE,
)
class WrongOrder(Cached):
    def forward(self, x, past_key, past_value):
        q, k, v = self.split(x)
        k, v = torch.cat((k, past_key), 2), torch.cat((v, past_value), 2)
        n, total = x.size(1), k.size(2)
        mask = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), k, v


@mutant(
    "length_divides",
    origin="a sum over the past divided by the whole length",
    kind="length",
)
class LengthDivides(nn.Module):
    def forward(self, x):
        return x.cumsum(1) / x.size(1)


@mutant("length_positions_from_the_end", origin="n - arange(n)", kind="length")
class PositionsFromEnd(nn.Module):
    def forward(self, x):
        n = x.size(1)
        return x + torch.sin((n - torch.arange(n)).float()).unsqueeze(-1)


@mutant("length_positions_stretched", origin="linspace(0, 1, n)", kind="length")
class PositionsStretched(nn.Module):
    def forward(self, x):
        return x + torch.linspace(0, 1, x.size(1)).view(1, -1, 1)


@mutant(
    "length_scaled_scores", origin="scores multiplied by log(n) of the whole length", kind="length"
)
class LogLength(Good):
    def weights(self, s):
        return super().weights(s * math.log(2 + 1) * torch.log(torch.tensor(s.size(-1) + 1.0)))


@mutant(
    "length_window_of_half",
    origin="a window of half the length",
    kind="length",
    declared="window:4",
)
class WindowOfHalf(Good):
    def hidden(self, n):
        delta = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        return (delta < 0) | (delta > n // 2)


@mutant(
    "length_table_right_aligned",
    origin="the last n rows of a position table",
    kind="length",
    limit=24,
)
class TableRightAligned(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(24, DIM))

    def forward(self, x):
        return x + self.pos[24 - x.size(1) :]


@mutant(
    "length_table_interpolated",
    origin="a position table resized to the input, as vision models do",
    kind="length",
)
class TableInterpolated(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos = nn.Parameter(torch.randn(1, DIM, 10))

    def forward(self, x):
        pos = F.interpolate(self.pos, size=x.size(1), mode="linear", align_corners=False)
        return x + pos.transpose(1, 2)


@mutant("length_as_feature", origin="the length itself added to the features", kind="length")
class LengthFeature(nn.Module):
    def forward(self, x):
        return x + torch.ones(x.size(1)).sum() * 0.05


@mutant("length_dynamic_rope_base", origin="a rotary base that grows with n", kind="length")
class DynamicBase(Good):
    def split(self, x):
        q, k, v = super().split(x)
        n = x.size(1)
        base = 10.0 * (1.0 + torch.tensor(float(n)))
        angle = torch.arange(n)[:, None] * base ** -(torch.arange(4.0) / 4)
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        q, k = (t * cos + torch.cat((-t[..., 4:], t[..., :4]), -1) * sin for t in (q, k))
        return q, k, v


@mutant(
    "length_switches_path",
    origin="another scale from a length of 8 on",
    kind="length",
    shows_from=9,
)
class SwitchesPath(Good):
    def forward(self, x):
        y = super().forward(x)
        return y * 2 if x.size(1) > 7 else y


@alone(
    "leak_memory_of_itself",
    Fused,
    inputs=given(memory, axes=[MEMORY]),
    breaks="cross",
    origin="the decoder's own positions are appended to the memory",
)
class MemoryOfItself(Remembering):
    def forward(self, x, memory):
        x = x + self.attend(self.norm(x))
        return x + self.cross(x, memory=torch.cat([memory, x], 1))


@alone(
    "leak_given_mask_one_off",
    Fused,
    inputs=given(bias, axes=[PAIRS]),
    breaks="attend",
    origin="the caller's causal mask, rolled by one key",
)
class GivenMaskOneOff(Masked):
    def forward(self, x, mask):
        return super().forward(x, mask.roll(1, -1))


@alone(
    "leak_given_mask_softened",
    Fused,
    inputs=given(bias, axes=[PAIRS]),
    breaks="attend",
    origin="the caller's -inf is clamped to a small number",
)
class GivenMaskSoftened(Masked):
    def forward(self, x, mask):
        return super().forward(x, mask.clamp(min=-4.0))


MUTANTS: tuple[Mutant, ...] = tuple(_mutants)
