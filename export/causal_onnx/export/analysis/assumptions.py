"""What a proof may rest on beyond the graph: kinds for programs, beside texts for people."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["AssumptionKind"]


class AssumptionKind(StrEnum):
    """Of an assumption; the value stands in the certificate's JSON."""

    FINITE_MASK = "finite_mask"
    """A finite mask value is so low that its weight underflows."""
    PADDED_ROWS = "padded_rows"
    """Rows that see nothing but padding are not proved."""
    ROUNDING = "rounding"
    """Something cancels up to rounding only."""
    UNPADDED_INPUTS = "unpadded_inputs"
    """Masks, positions or lengths among the inputs are those of sequences without padding."""
    CAUSAL_MASK = "causal_mask"
    """A mask among the inputs hides every later key from its query."""
    GUESSED_AXIS = "guessed_axis"
    """Which axis holds the positions was chosen by rank."""
    OPTIONAL_INPUTS = "optional_inputs"
    """Inputs that may be left out are."""
    MEASURED_STEPS = "measured_steps"
    """Steps act at every length as at those tried."""
    OTHER = "other"
    """Of a certificate from before assumptions had kinds."""
