"""The steps that are measured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Step", "default_steps"]


DECODE_PASTS = (16, 128, 512, 1024, 2000)
PROMPTS = (16, 128, 512)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Step:
    """One call of batch 1: `seq` new positions after `past_seq` earlier ones."""

    past_seq: int
    seq: int

    def __post_init__(self) -> None:
        if self.past_seq < 0 or self.seq < 1:
            raise ValueError(
                "past_seq must be at least 0 and seq at least 1, got "
                f"{self.past_seq} and {self.seq}"
            )

    def __str__(self) -> str:
        if self.past_seq == 0:
            return f"prompt of {self.seq}"
        return f"{self.seq} after {self.past_seq}"


def default_steps(max_seq_len: int) -> list[Step]:
    """Single tokens after pasts of many lengths, then prompts; those that fit."""
    steps = [
        *(Step(past_seq=past, seq=1) for past in DECODE_PASTS),
        *(Step(past_seq=0, seq=seq) for seq in PROMPTS),
    ]
    return [step for step in steps if step.past_seq + step.seq <= max_seq_len]
