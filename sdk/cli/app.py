"""Puts the verbs together, and turns errors into sentences and exit codes."""

from __future__ import annotations

import json
import sys
import traceback

import typer

from edgekit.cli import (
    analyze,
    bench,
    calibrate,
    devices,
    distill,
    export,
    inspect,
    lossless,
    measure,
    report,
    run_input,
)
from edgekit.errors import EdgekitError, InvalidInput
from edgekit.toolchains import torch_missing

INTERRUPTED = 130
UsageProblem: type[Exception] = typer.BadParameter.mro()[2]  # click's ClickException, or typer's own copy of it

app = typer.Typer(
    name="edgekit",
    help="Turn a PyTorch model into a verified bundle for a device, and measure it.",
    epilog="Start here:  edgekit export -m zoo:efficientnet_lite0 -d raspberrypi5 -o out",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    export.export,
    export.plan,
    analyze.analyze,
    distill.distill,
    lossless.compress,
    lossless.decompress,
    inspect.verify,
    run_input.run,
    measure.profile,
    measure.compare,
    report.report,
    inspect.inspect,
    inspect.list_plugins,
    devices.devices,
    calibrate.calibrate,
    inspect.doctor,
):
    name, epilog = getattr(verb, "cli")  # noqa: B009  set by `edgekit.cli.options.verb`
    app.command(name, epilog=epilog)(verb)
app.add_typer(bench.app, name="bench")


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    arguments = [_kebab(argument) for argument in arguments if argument != "--debug"] or ["--help"]
    try:
        result = app(args=arguments, prog_name="edgekit", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except EdgekitError as error:
        if debug:
            traceback.print_exc()
        return _fail(error, error.exit_code, "--json" in arguments)
    except (typer.Exit, typer.Abort, KeyboardInterrupt) as stop:
        code = getattr(stop, "exit_code", INTERRUPTED)
    except UsageProblem as error:
        said = getattr(error, "format_message", error.__str__)().rstrip(".")
        return _fail(InvalidInput(f"{said}. See: edgekit [VERB] --help"), 2, "--json" in arguments)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError) and (missing := torch_missing(error)):
            return _fail(missing, missing.exit_code, "--json" in arguments)
        said = f"unexpected {type(error).__name__}: {error}. Run again with --debug for the traceback, and report it"
        return _fail(EdgekitError(said), 2, "--json" in arguments)
    if code == INTERRUPTED:
        print("interrupted: nothing half-written has the output's name", file=sys.stderr)
    return code


def _fail(error: EdgekitError, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": code}, indent=2))
    print(f"error: {error}", file=sys.stderr)
    return code


def _kebab(argument: str) -> str:
    """Accept `--max_drop` for `--max-drop`."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument
