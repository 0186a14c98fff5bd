"""`edgekit analyze --sites`: the modules that a lighter encoder can take the place of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.cli.output import progress, say, show_json, show_table

if TYPE_CHECKING:
    from edgekit.distill.cutting.site import Site

SHOWN_REFUSED = 5  # lines
WORTH = 0.3  # least share of a model that is suggested to be swapped
IMAGE_RANK = 4  # [B, C, H, W], what students see


def analyze_sites(
    model: str,
    *,
    inputs: Sequence[str],
    dynamic: Sequence[str],
    trust_remote_code: bool,
    every: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Find the sites and show them. Returns 1 where there is none that can be swapped."""
    from edgekit.distill.cutting.site import sites
    from edgekit.source import load

    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(model, inputs=inputs, dynamic=dynamic, trust_remote_code=trust_remote_code)
        step("follow the data between its modules")
        found = sites(loaded)
    if json:
        show_json(found)
    else:
        _show(model, found, every)
    return 0 if any(site.refused is None for site in found) else 1


def _show(model: str, found: Sequence[Site], every: bool) -> None:
    usable = [site for site in found if site.refused is None]
    refused = [site for site in found if site.refused is not None]
    columns = ("site", "params", "of model", "MACs", "of model", "time", "outputs that the rest reads")
    if usable:
        show_table(columns, [_row(site) for site in usable])
    for site in refused if every else refused[:SHOWN_REFUSED]:
        say(f"not {site.path} ({site.weight:.0%} of the model): {site.refused}")
    if not every and len(refused) > SHOWN_REFUSED:
        say(f"and {len(refused) - SHOWN_REFUSED} more that cannot be swapped: add --every")
    parts = [site for site in usable if site.weight >= WORTH and site.params_share < 1]  # not the model itself
    if worthy := [site for site in parts if len(site.inputs[0].shape) == IMAGE_RANK]:
        say(f"Next: edgekit distill -m {model} --site {worthy[0].path} --student npu-conv --data DIR -o OUT")


def _row(site: Site) -> tuple[str, ...]:
    params = f"{site.params:,}", f"{site.params_share:.1%}"
    macs = f"{site.macs:,}", f"{site.macs_share:.1%}"
    time = "" if site.time_share is None else f"{site.time_share:.1%}"
    return site.path, *params, *macs, time, "; ".join(map(str, site.outputs))
