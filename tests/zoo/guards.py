"""Python around the attention: checks, branches, state, randomness."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from .entry import Family, features, ids

guards = Family("guard")
CTX = 24


class Guarded(nn.Module):
    """Attention without a limit of its own; the subclasses add the python around it."""

    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(dim, 3 * dim)
        self.c_proj = nn.Linear(dim, dim)

    def attend(self, x, mask=None, dropout_p=0.0):
        b, n, d = x.shape
        q, k, v = self.c_attn(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=mask is None
        )
        return self.c_proj(y.transpose(1, 2).reshape(b, n, d))


@guards.add("guard_raise", inputs=features(16), limit=CTX, origin="if n > ctx: raise ValueError")
class Raise(Guarded):
    def forward(self, x):
        if x.size(1) > CTX:
            raise ValueError(f"Sequence of length {x.size(1)} exceeds context length {CTX}")
        return self.attend(x)


@guards.add("guard_assert", inputs=features(16), limit=CTX, origin="assert n <= ctx with a message")
class Assert(Guarded):
    def forward(self, x):
        _, t, c = x.shape
        assert t <= CTX, f"cannot forward sequence of length {t}, block size is only {CTX}"
        assert c == 16, "wrong width"
        return self.attend(x)


@guards.add("guard_torch_assert", inputs=features(16), limit=CTX, origin="torch._assert on length")
class TorchAssert(Guarded):
    def forward(self, x):
        torch._assert(x.shape[1] <= CTX, "sequence too long")
        return self.attend(x)


@guards.add("guard_torch_check", inputs=features(16), limit=CTX, origin="torch._check on length")
class TorchCheck(Guarded):
    def forward(self, x):
        torch._check(x.shape[1] <= CTX, lambda: "sequence too long")
        return self.attend(x)


@guards.add(
    "guard_raise_in_helper",
    inputs=ids(31),
    limit=CTX,
    origin="the check hidden in a position module two levels down",
)
class RaiseInHelper(Guarded):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.max_len = CTX

        def forward(self, n):
            if n > self.max_len:
                raise IndexError(f"{n} positions asked, {self.max_len} known")
            return torch.arange(n).float().unsqueeze(-1).expand(-1, 16) / 10

    def __init__(self):
        super().__init__()
        self.emb, self.positions = nn.Embedding(31, 16), self.Positions()

    def forward(self, idx):
        return self.attend(self.emb(idx) + self.positions(idx.shape[1]))


@guards.add(
    "guard_crop_to_context",
    inputs=ids(31),
    limit=CTX,
    beyond="crops",
    origin="idx[:, -block_size:] inside forward",
)
class CropToContext(Guarded):
    def __init__(self):
        super().__init__()
        self.emb, self.pos = nn.Embedding(31, 16), nn.Embedding(CTX, 16)

    def forward(self, idx):
        idx = idx[:, -CTX:]
        return self.attend(self.emb(idx) + self.pos(torch.arange(idx.size(1))))


@guards.add(
    "guard_crop_if_longer",
    inputs=features(16),
    limit=CTX,
    beyond="crops",
    origin="an if that truncates from the end",
)
class CropIfLonger(Guarded):
    def forward(self, x):
        if x.size(1) > CTX:
            x = x[:, :CTX]
        return self.attend(x)


@guards.add(
    "guard_mask_if_more_than_one", inputs=features(16), origin="mask = None; if n > 1: mask = triu"
)
class MaskIfMoreThanOne(Guarded):
    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.c_attn(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = q @ k.mT / math.sqrt(q.size(-1))
        if n > 1:
            s = s + torch.full((n, n), float("-inf")).triu(1)
        return self.c_proj((s.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


@guards.add(
    "guard_return_early_at_one",
    inputs=features(16),
    origin="a special path for a single token, with the same result",
)
class EarlyAtOne(Guarded):
    def forward(self, x):
        if x.shape[1] == 1:
            return self.c_proj(self.c_attn(x).chunk(3, dim=-1)[2])
        return self.attend(x)


@guards.add(
    "guard_mask_rebuilt_if_size_differs",
    inputs=features(16),
    tags=("lazy",),
    origin="self.src_mask rebuilt when its size is not the input's, as in the LM tutorial",
)
@guards.add(
    "guard_mask_rebuilt_warm",
    inputs=features(16),
    tags=("lazy",),
    warm=lambda m: m(torch.zeros(1, 6, 16)),
    origin="the same, after a call at length 6",
)
class MaskRebuilt(Guarded):
    def __init__(self):
        super().__init__()
        self.src_mask = None

    def forward(self, src):
        if self.src_mask is None or self.src_mask.size(0) != src.size(1):
            self.src_mask = nn.Transformer.generate_square_subsequent_mask(src.size(1))
        return self.attend(src, self.src_mask)


@guards.add("guard_rank_check", inputs=features(16), origin="dim() checked, isinstance checked")
class RankCheck(Guarded):
    def forward(self, x):
        if not isinstance(x, torch.Tensor) or x.dim() != 3:
            raise TypeError(f"expected a 3-D tensor, got {x.dim()}-D")
        if not x.is_floating_point():
            x = x.float()
        return self.attend(x.contiguous() if not x.is_contiguous() else x)


@guards.add(
    "guard_assert_no_nan",
    inputs=features(16),
    tags=("data_dependent",),
    origin="assert not torch.isnan(x).any()",
)
class AssertNoNan(Guarded):
    def forward(self, x):
        assert not torch.isnan(x).any(), "NaN in the input"
        y = self.attend(x)
        assert torch.isfinite(y).all()
        return y


@guards.add(
    "guard_if_any_padding",
    inputs=ids(31),
    tags=("data_dependent", "padding"),
    origin="if (ids == pad).any(): build a padding mask",
    seed=2,
)
class IfAnyPadding(Guarded):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(31, 16)

    def forward(self, idx):
        n = idx.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        pad = idx == 30
        if pad.any():
            mask = mask & ~pad[:, None, None, :] | torch.eye(n, dtype=torch.bool)
        return self.attend(self.emb(idx), mask)


@guards.add(
    "guard_ids_range_check",
    inputs=ids(31),
    tags=("data_dependent",),
    origin="if ids.max() >= vocab: raise",
)
class IdsRangeCheck(Guarded):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(31, 16)

    def forward(self, idx):
        if idx.max() >= 31 or idx.min() < 0:
            raise IndexError("token id out of range")
        return self.attend(self.emb(idx))


@guards.add(
    "guard_try_except", inputs=features(16), origin="try the fast call, fall back on RuntimeError"
)
class TryExcept(Guarded):
    def forward(self, x):
        try:
            return self.attend(x)
        except RuntimeError:
            n = x.shape[1]
            return self.attend(x, torch.ones(n, n, dtype=torch.bool).tril())


@guards.add(
    "guard_warns_when_long",
    inputs=features(16),
    limit=CTX,
    beyond="accepts",
    warns=r"\d+ positions, trained on",
    origin="warnings.warn past the trained length, and on it goes",
)
class WarnsWhenLong(Guarded):
    def forward(self, x):
        if x.shape[1] > CTX:
            warnings.warn(f"{x.shape[1]} positions, trained on {CTX}", stacklevel=2)
        return self.attend(x)


@guards.add(
    "guard_training_branch", inputs=features(16), origin="noise and a loss in training mode only"
)
class TrainingBranch(Guarded):
    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x) * 0.1
        y = self.attend(x, dropout_p=0.2 if self.training else 0.0)
        return F.dropout(y, 0.1, self.training)


@guards.add(
    "guard_grad_enabled_branch",
    inputs=features(16),
    origin="a branch on torch.is_grad_enabled() between two equal paths",
)
class GradEnabledBranch(Guarded):
    def forward(self, x):
        if torch.is_grad_enabled():
            n = x.shape[1]
            return self.attend(x, torch.ones(n, n, dtype=torch.bool).tril())
        return self.attend(x)


@guards.add(
    "guard_context_managers",
    inputs=features(16),
    origin="no_grad, record_function and autocast(enabled=False) around the attention",
)
class ContextManagers(Guarded):
    def forward(self, x):
        with (
            torch.no_grad(),
            torch.profiler.record_function("attention"),
            torch.autocast("cpu", enabled=False),
        ):
            return self.attend(x.detach())


@guards.add(
    "guard_kwargs_and_defaults",
    inputs=features(16),
    origin="keyword-only options with defaults, **kwargs swallowed",
)
class KwargsAndDefaults(Guarded):
    def forward(self, x, mask=None, *, causal=True, scale=None, **kwargs):
        y = self.attend(x) if causal and mask is None else self.attend(x, mask)
        return y if scale is None else y * scale


@guards.add(
    "guard_parametrized_weights",
    inputs=features(16),
    origin="weight_norm on the projection",
)
class Parametrized(Guarded):
    def __init__(self):
        super().__init__()
        self.c_proj = nn.utils.parametrizations.weight_norm(self.c_proj)

    def forward(self, x):
        return self.attend(x)


class LowRank(nn.Module):
    """A frozen linear layer and a low-rank correction."""

    def __init__(self, base: nn.Linear, rank: int = 3) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.active, self.scaling = ["default"], 0.5

    def forward(self, x):
        result = self.base(x)
        for name in self.active:
            result = result + self.lora_B[name](self.lora_A[name](x)) * self.scaling
        return result


@guards.add(
    "guard_low_rank_adapters",
    inputs=features(16),
    origin="projections replaced by frozen ones with low-rank adapters",
)
class LowRankAdapters(Guarded):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = LowRank(self.c_attn), LowRank(self.c_proj)

    def forward(self, x):
        return self.attend(x)


@guards.add(
    "guard_forward_hooks",
    inputs=features(16),
    origin="forward hooks: one stores a statistic, one scales the output",
)
class ForwardHooks(Guarded):
    def __init__(self):
        super().__init__()
        self.seen = {}
        self.c_proj.register_forward_hook(lambda m, args, out: out * 0.5)
        self.c_attn.register_forward_pre_hook(lambda m, args: (args[0] + 0.25,))

    def forward(self, x):
        return self.attend(x)


@guards.add(
    "guard_stores_attention_on_self",
    inputs=features(16),
    origin="self.attn_weights = ... kept for a plot",
)
class StoresAttention(Guarded):
    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.c_attn(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = (q @ k.mT / 3).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf)
        self.attn_weights = s.softmax(-1)
        return self.c_proj((self.attn_weights @ v).transpose(1, 2).reshape(b, n, d))


@guards.add(
    "guard_layers_from_config_list",
    inputs=features(16),
    origin="a python loop over layers with a branch on the layer's index",
)
class LayerBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Guarded() for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = x + layer.attend(x)
            if i % 2:
                x = x + self.mlp(x)
        return x


@guards.add(
    "guard_dropout_not_gated",
    inputs=features(16),
    expect="refused:random in eval mode, dropout_p does not depend on self.training",
    tags=("random",),
    origin="the well-known slip: dropout_p=self.dropout in SDPA",
)
class DropoutNotGated(Guarded):
    def forward(self, x):
        return self.attend(x, dropout_p=0.3)


@guards.add(
    "guard_functional_dropout_default",
    inputs=features(16),
    expect="refused:random in eval mode, F.dropout is training by default",
    tags=("random",),
    origin="F.dropout(x, p) without training=self.training",
)
class FunctionalDropout(Guarded):
    def forward(self, x):
        return F.dropout(self.attend(x), 0.2)


@guards.add(
    "guard_noise_in_eval",
    inputs=features(16),
    expect="refused:random in eval mode, torch.randn_like in forward",
    tags=("random",),
    origin="noise added in every mode",
)
class NoiseInEval(Guarded):
    def forward(self, x):
        return self.attend(x + 0.1 * torch.randn_like(x))


@guards.add(
    "guard_random_reseeded",
    inputs=features(16),
    expect="refused:random in eval mode, a sample drawn from a distribution",
    tags=("random",),
    origin="a Gumbel sample in the router, in every mode",
)
class GumbelRouter(Guarded):
    def __init__(self):
        super().__init__()
        self.route = nn.Linear(16, 2)

    def forward(self, x):
        return self.attend(x) * F.gumbel_softmax(self.route(x), dim=-1)[..., :1]


@guards.add(
    "guard_counts_its_calls",
    inputs=features(16),
    expect="refused:the output depends on how often the module was called",
    tags=("state",),
    origin="a step counter that scales the output",
)
class CountsItsCalls(Guarded):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x):
        self.step += 1
        return self.attend(x) * (1 + 0.1 * self.step)


@guards.add(
    "guard_cache_on_self",
    inputs=features(16),
    expect="refused:keys and values of earlier calls are kept on the module",
    tags=("state", "cache"),
    origin="a stateful key-value cache appended to on every call, never reset",
)
class CacheOnSelf(Guarded):
    def __init__(self):
        super().__init__()
        self.past = None

    def forward(self, x):
        k, v = self.c_attn(x).chunk(3, dim=-1)[1:]
        q = self.c_attn(x)[..., :16]
        if self.past is not None and self.past[0].size(0) == x.size(0):
            k, v = torch.cat((self.past[0], k), 1), torch.cat((self.past[1], v), 1)
        self.past = (k.detach(), v.detach())
        n, total = q.size(1), k.size(1)
        mask = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@guards.add(
    "guard_running_stats_in_eval",
    inputs=features(16),
    expect="refused:the output depends on inputs of earlier calls",
    tags=("state",),
    origin="an exponential average of the input's scale, updated in every mode",
)
class RunningScale(Guarded):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(16))

    def forward(self, x):
        y = self.attend(x / self.scale)
        self.scale.mul_(0.9).add_(0.1 * x.detach().abs().amax((0, 1)))
        return y


@guards.add(
    "guard_while_until_converged",
    inputs=features(16),
    expect="refused:a while loop whose condition depends on the data",
    tags=("data_dependent",),
    origin="a fixed-point iteration that stops by a tolerance",
    causal_up_to=math.inf,  # how many steps are taken depends on every position
    prefix_up_to=math.inf,
    cacheable=False,
)
class WhileConverged(Guarded):
    def forward(self, x):
        z, steps = torch.zeros_like(x), 0
        while steps < 8:
            new = torch.tanh(self.attend(z) + x)
            steps += 1
            if (new - z).abs().max() < 0.4:
                break
            z = new
        return z


@guards.add(
    "guard_sorts_batch_by_value",
    inputs=features(16),
    tags=("tricky",),
    origin="the batch sorted by a key and put back in order afterwards",
    cacheable=False,
)
class SortsBatch(Guarded):
    def forward(self, x):
        order = x[:, 0, 0].argsort()
        return self.attend(x[order])[order.argsort()]


ENTRIES = tuple(guards.entries)
