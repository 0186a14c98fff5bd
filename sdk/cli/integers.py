"""`edgekit verify --integer-only`: a file without floats, and the integers that LiteRT computes."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.cli.output import progress, say, show_json, show_pairs


def verify_integers(folder: Path, max_steps: int, json: bool, quiet: bool) -> int:
    """Run every op in numpy with integers only, and compare; 1 where an op needs float or differs."""
    from edgekit.bundle import Bundle
    from edgekit.npu.integer.check import SAMPLES, integer_check

    bundle = Bundle.open(folder)
    with progress(quiet) as step:
        step(f"run every op in integers on {SAMPLES} samples")
        found = integer_check(bundle, max_steps=max_steps)
    if json:
        show_json(found)
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.ops.items())
        pairs = [("ops", f"{sum(found.ops.values())}: {kinds}")]
        if not found.islands:
            equal = "equal in all" if not found.differences else f"{len(found.differences)} ops differ;"
            pairs.append(
                ("reference", f"{equal} {found.values:,} values that LiteRT's kernels wrote on {found.samples} samples")
            )
        pairs += [
            ("output", f"{each.name}: {each.sqnr_db:.1f} dB to PyTorch; XNNPACK rounds in float, {each.xnnpack_steps} "
             "steps off at most") for each in found.outputs
        ]  # fmt: skip
        show_pairs(pairs)
        for miss in found.misses:
            print(f"error: {miss}", file=sys.stderr)
        if found.islands:
            say("Inputs and outputs are integers with --option integer_io=true, which -d ethos-u85-256 sets by itself")
    return 0 if found.ok else 1
