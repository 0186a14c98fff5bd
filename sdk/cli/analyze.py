"""`edgekit analyze`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.analyze_fix import analyze_fix
from edgekit.cli.analyze_npu import analyze_npu
from edgekit.cli.output import progress, say, show_json, show_table
from edgekit.errors import InvalidInput

if TYPE_CHECKING:
    from edgekit.distill.cutting.site import Site
    from edgekit.preflight import Analysis

SHOWN_REFUSED = 5  # lines
WORTH = 0.3  # least share of a model that is suggested to be swapped
IMAGE_RANK = 4  # [B, C, H, W], what students see


@given.verb("analyze", "edgekit analyze -m model.py:make --format tflite\n\n"
            "Next:  edgekit analyze -m model.py:make --format tflite --save-repro repro\n\n"
            "What an NPU runs of it:  edgekit analyze -m model.py:make -d ethos-u85-256\n\n"
            "The same model as that NPU runs it:  edgekit analyze -m model.py:make -d ethos-u85-256 --fix -o OUT\n\n"
            "What another encoder can take the place of:  edgekit analyze -m model.py:make --sites")  # fmt: skip
def analyze(
    model: given.ModelRef,
    format: given.Format = "all",
    input: given.Inputs = None,
    dynamic: given.Dynamic = None,
    every: Annotated[
        bool, typer.Option("--every", help="List every op, not only those with something to say.")
    ] = False,
    save_repro: Annotated[
        Path | None, typer.Option("--save-repro", help="Write the smallest failing submodule as a script here.")
    ] = None,
    sites: Annotated[
        bool, typer.Option("--sites", help="List the modules that a lighter encoder can take the place of instead.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="Say what this device's NPU runs instead; see `edgekit devices`."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "--calibration", help="With -d: samples that show ranges: images, file.npz, builtin:NAME."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="With -d: activations in this dtype; the NPU's first one if left out.")
    ] = None,
    min_coverage: Annotated[
        float | None,
        typer.Option("--min-coverage", help="With -d: fail when fewer percent of the MACs run on the NPU."),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option("--min-sqnr", help="With -d and --data: say which ops need 16 bits for answers of so many dB."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="With -d: write the audit as a page here.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="With -d: write the model as the NPU runs it, rewritten exactly, to -o.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --fix: folder to make.")] = None,
    allow: Annotated[
        str | None,
        typer.Option("--allow", help="With --fix: changes that are not exact, each repaired and judged: act,norm."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at --html or -o.")] = False,
    trust_remote_code: given.TrustRemoteCode = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Say what each op of a model becomes in a format or on an NPU, at its source line, without converting.

    Exits 1 when something needs a rewrite for a format, when an NPU runs less than --min-coverage, or where 16 bits do
    not reach --min-sqnr.
    """
    if device is None and (data or dtype or html or not {min_coverage, min_sqnr} <= {None}):
        raise InvalidInput("--data, --dtype, --min-coverage, --min-sqnr and --html are of an NPU: add -d DEVICE")
    if not fix and (output or allow):
        raise InvalidInput("-o and --allow are for a model that is rewritten: add --fix -d DEVICE")
    if fix and (device is None or html or dtype or min_sqnr is not None):
        raise InvalidInput(
            "--fix makes a folder with a page in it: add -d DEVICE, leave out --html, --dtype, --min-sqnr"
        )
    if min_coverage is not None and not 0 <= min_coverage <= 100:
        raise InvalidInput(f"--min-coverage {min_coverage:g}: give a percentage of MACs from 0 to 100")
    if device is not None:
        if sites or format != "all" or save_repro:
            raise InvalidInput("-d asks an NPU and no format: leave out --sites, --format and --save-repro")
        if fix:
            return analyze_fix(
                model, device, output, allow=allow, data=data, min_coverage=min_coverage, inputs=input or (),
                dynamic=dynamic or (), trust_remote_code=trust_remote_code, force=force, every=every, json=json,
                quiet=quiet,
            )  # fmt: skip
        return analyze_npu(
            model, device, data=data, dtype=dtype, min_coverage=min_coverage, min_sqnr=min_sqnr, html=html,
            inputs=input or (), dynamic=dynamic or (), trust_remote_code=trust_remote_code, force=force, every=every,
            json=json, quiet=quiet,
        )  # fmt: skip
    if sites:
        if format != "all" or save_repro:
            raise InvalidInput("--sites does not depend on a format: leave out --format and --save-repro")
        found_sites = _sites(model, input or (), dynamic or (), trust_remote_code, quiet)
        if json:
            show_json(found_sites)
        else:
            _show_sites(model, found_sites, every)
        return 0 if any(site.refused is None for site in found_sites) else 1
    from edgekit import preflight, repro
    from edgekit.multiformat import choose_formats
    from edgekit.source import load

    formats = choose_formats("all" if format == "auto" else format)
    if save_repro and len(formats) > 1:
        raise InvalidInput("--save-repro is for one format: add --format")
    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(model, inputs=input or (), dynamic=dynamic or (), trust_remote_code=trust_remote_code)
        found = [preflight.analyze(loaded, name, progress=step) for name in formats]
        saved = None
        if save_repro:
            saved = repro.save_repro(
                loaded,
                formats[0],
                save_repro,
                inputs=input or (),
                dynamic=dynamic or (),
                trust_remote_code=trust_remote_code,
                progress=step,
            )
    if json:
        show_json(found)
    else:
        for analysis in found:
            _show(analysis, every)
    if save_repro and not json:
        part = f"'{saved}'" if saved else "the whole model"
        say("nothing fails: no script written" if saved is None else f"{save_repro}/repro.py fails like {part}")
    return 0 if all(analysis.converts for analysis in found) else 1


def _sites(
    model: str, inputs: Sequence[str], dynamic: Sequence[str], trust_remote_code: bool, quiet: bool
) -> tuple[Site, ...]:
    from edgekit.distill.cutting.site import sites
    from edgekit.source import load

    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(model, inputs=inputs, dynamic=dynamic, trust_remote_code=trust_remote_code)
        step("follow the data between its modules")
        return sites(loaded)


def _show_sites(model: str, found: Sequence[Site], every: bool) -> None:
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


def _show(analysis: Analysis, every: bool) -> None:
    counts = Counter(op.verdict for op in analysis.ops)
    say(f"{analysis.format}: " + (", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "not traced"))
    if analysis.error:
        say(f"  {analysis.error}")
    groups: dict[tuple[str, ...], list[str]] = {}
    for op in analysis.ops:
        if every or op.reason:
            groups.setdefault((op.verdict, op.op, op.reason, op.fix), []).append(op.place)
    for (verdict, name, reason, fix), places in groups.items():
        say(f"  {verdict}: {name}" + (f": {reason}" if reason else ""))
        for place, count in Counter(places).items():
            say(f"    at {place}" + (f" x{count}" if count > 1 else ""))
        if fix:
            say(f"    fix: {fix}")
