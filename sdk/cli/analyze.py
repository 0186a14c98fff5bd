"""`edgekit analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import options as given
from edgekit.cli.analyze_fix import analyze_fix
from edgekit.cli.analyze_format import analyze_format
from edgekit.cli.analyze_npu import analyze_npu
from edgekit.cli.analyze_sites import analyze_sites
from edgekit.errors import InvalidInput


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
    common: dict[str, Any] = {
        "inputs": input or (), "dynamic": dynamic or (), "trust_remote_code": trust_remote_code, "every": every,
        "json": json, "quiet": quiet,
    }  # fmt: skip
    if device is None and sites:
        if format != "all" or save_repro:
            raise InvalidInput("--sites does not depend on a format: leave out --format and --save-repro")
        return analyze_sites(model, **common)
    if device is None:
        return analyze_format(model, format, save_repro=save_repro, **common)
    if sites or format != "all" or save_repro:
        raise InvalidInput("-d asks an NPU and no format: leave out --sites, --format and --save-repro")
    common |= {"data": data, "min_coverage": min_coverage, "force": force}
    if fix:
        return analyze_fix(model, device, output, allow=allow, **common)
    return analyze_npu(model, device, dtype=dtype, min_sqnr=min_sqnr, html=html, **common)
