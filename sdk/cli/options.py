"""The options of `export` and those that several verbs share, and how a verb is declared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from edgekit.errors import InvalidInput

F = TypeVar("F", bound=Callable[..., object])

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Threads = Annotated[int, typer.Option("--threads", help="Threads of the runtime.")]
Place = Annotated[
    str | None, typer.Option("--device", "-d", help="ssh:user@host[:port] or adb:SERIAL; this machine when left out.")
]
TimeLimit = Annotated[
    int | None,
    typer.Option("--time-limit", help="Seconds until a board ends the work by itself; 900 if left out."),
]
OfflineWheels = Annotated[
    Path | None, typer.Option("--offline-wheels", help="Folder with wheels for the board, where no index is in reach.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `edgekit export` wrote.")]
ModelRef = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="zoo:NAME, file.py:factory, package.module:factory, model.pt2, a folder of Hugging Face, distill, --fix.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to make; must not exist.")]
DeviceName = Annotated[
    str, typer.Option("--device", "-d", help="Profile id, product or SoC name, or a TOML path; see `edgekit devices`.")
]
Precision = Annotated[
    str, typer.Option("--precision", help="auto, fp32, lossless, fp16, int8, int8-dynamic, int8-weight-only or w4a8.")
]
Format = Annotated[str, typer.Option("--format", help="auto, all, or some of `edgekit list exporters`: onnx,tflite.")]
Calibration = Annotated[
    str | None,
    typer.Option("--calibration", help="Samples that set int8 ranges: image folder, file.npz, builtin:NAME."),
]
Samples = Annotated[
    str | None, typer.Option("--samples", help="Real inputs to verify with: image folder, file.npz, builtin:NAME.")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="Do what this plan.json says (edgekit plan -o).")]
ExporterOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE of the exporter, or FORMAT.NAME=VALUE. Repeatable."),
]
Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="NAME:DTYPE:1x3x224x224, where the model does not say. Repeatable.")
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option("--dynamic", help="batch=1:8, batch=1,8, seq=1:256 or INPUT.AXIS=LOW:HIGH. Repeatable."),
]
Context = Annotated[
    int | None, typer.Option("--context", help="Tokens a language model's cache holds, prompt and answer together.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that a folder brings or names."),
]
MaxMemory = Annotated[float | None, typer.Option("--max-memory-mb", help="Fail above this many MB.")]
Energy = Annotated[
    str,
    typer.Option(
        "--energy",
        help="off; measured: joules per inference, and fail where nothing measures; any: a model's figure beside them.",
    ),
]
Meter = Annotated[
    str | None,
    typer.Option(
        "--meter", help="NAME,OPTION=VALUE of the meter to read, see edgekit doctor; the best here if left out."
    ),
]
MinCosine = Annotated[float | None, typer.Option("--min-cosine", help="Parity gate: least cosine of any sample.")]
MinSqnr = Annotated[float | None, typer.Option("--min-sqnr-db", help="Parity gate: least SQNR over all samples.")]

IntegerOnly = Annotated[
    bool, typer.Option("--integer-only", help="Run an int8 TFLite file with integers only and compare every op.")
]
MaxSteps = Annotated[int, typer.Option("--max-steps", help="With --integer-only: steps an op may differ by.")]
MaxDrop = Annotated[
    float | None, typer.Option("--max-drop", help="Parity gate: most percentage points of top-1 to lose.")
]
MinDelegated = Annotated[
    float | None, typer.Option("--min-delegated", help="Fail when fewer percent of the ops run on the main unit.")
]
NoFallback = Annotated[bool, typer.Option("--no-fallback", help="The same as --min-delegated 100.")]
KeepIntermediates = Annotated[
    bool, typer.Option("--keep-intermediates", help="Keep files that help debugging (ETRecord, float graph).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print plan and forecast, write nothing.")]
ForceBundle = Annotated[
    bool, typer.Option("--force", help="Replace an existing bundle; keep one that misses parity, marked so.")
]
Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Time the bundle on this machine at the end.")]


DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
UNITS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Seconds of `90`, `90s`, `10m` or `1.5h`. Raises `InvalidInput`."""
    found = DURATION.fullmatch(text.strip())
    if found is None:
        raise InvalidInput(f"'{text}' is no time: give it as 90s, 10m or 1h")
    return float(found[1]) * UNITS[found[2]]


def verb(name: str, example: str) -> Callable[[F], F]:
    """Declare a command: its name, and the example its help ends with."""

    def declare(function: F) -> F:
        function.cli = (name, f"Example:  {example}")  # type: ignore[attr-defined]
        return function

    return declare
