"""Command line: `python -m tools.judge FILE...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.judge.verdict import judge, merged

from causal_onnx.export.attestation import attest
from causal_onnx.export.proof.symbolic.implication import logging_implications

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the proofs of some files; 0 all proved, 1 refuted or not decided."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.judge",
        description="Let z3 look for a counter-example to each implication that the symbolic proof "
        "of these ONNX files accepts.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    found = []
    for path in parser.parse_args(argv).files:
        with logging_implications() as log:
            certificate = attest(path, dynamic=False)
        found.append(judge(log))
        print(f"{path}: {certificate.verdict.replace('_', ' ')}; {found[-1]}")
        for key, remark in found[-1].remarks.items():
            print(f"  {found[-1].distinct[key]}: {remark}")
    together = merged(found)
    print(f"together: {together}")
    return 0 if together.count("proved") == len(together.distinct) else 1


if __name__ == "__main__":
    sys.exit(main())
