"""`edgekit compress` and `edgekit decompress`, and `verify` for what they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options as given
from edgekit.cli.output import progress, say, show_json, show_pairs, show_table, warn
from edgekit.errors import InvalidInput
from edgekit.types import Value

if TYPE_CHECKING:
    from edgekit.dfloat11_folder import StreamCheck
    from edgekit.lossless_folder import LosslessManifest, TensorRecord

REASONS_SHOWN = 8


class StoredAs(Value, frozen=True, kw_only=True):
    """The tensors that are stored in one way."""

    codec: str
    reason: str | None = None
    tensors: int
    weights: int
    bytes_before: int
    bytes_after: int


class Summary(Value, frozen=True, kw_only=True):
    """What became of the files with tensors."""

    folder: str
    bytes_before: int  # of these files
    bytes_after: int
    by_codec: tuple[StoredAs, ...]  # the most bytes first
    raw: tuple[StoredAs, ...]  # by reason, likewise


@given.verb("compress", "edgekit compress -m my_model_folder -o out\n\nNext:  edgekit verify out")
def compress(
    model: Annotated[Path, typer.Option("--model", "-m", help="A Hugging Face folder, or one .safetensors file.")],
    output: given.Output,
    codec: Annotated[str, typer.Option("--codec", help="auto, or one of `edgekit list formats`.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that compress made.")] = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Store the bf16 weights of a model in about two thirds of their bytes, with every bit kept.

    Each tensor is decoded again and compared before the folder takes its name. Stopped, the same command goes on.
    """
    from edgekit.dfloat11_folder import is_dfloat11
    from edgekit.lossless import compress_weights, partial_of

    if model.is_dir() and is_dfloat11(model):
        raise InvalidInput(
            f"the dfloat11 package has compressed '{model}' already: edgekit decompress -m {model} -o PLAIN gives the "
            "weights back, and those can be compressed again"
        )
    try:
        with progress(quiet) as step:
            manifest = compress_weights(model, output, codec, force=force, progress=step)
    except KeyboardInterrupt:
        warn([f"the same command goes on where this one stopped; or remove '{partial_of(output)}'"])
        raise
    summary = summarize(output, manifest)
    if json:
        show_json(summary)
        return 0
    _show(summary)
    say(f"\nproof    all {sum(s.tensors for s in summary.by_codec)} tensors were decoded: sha256 as in the source")
    say(f"\nNext:  edgekit verify {output}")
    return 0


@given.verb("decompress", "edgekit decompress -m out -o my_model_folder")
def decompress(
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder that compress, or dfloat11, made.")],
    output: given.Output,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Bring the files back that were compressed, byte by byte as they were.

    Of a folder that the dfloat11 package made, the weights; config.json must name an architecture of transformers.
    """
    from edgekit.dfloat11_folder import decompress_dfloat11, is_dfloat11
    from edgekit.lossless import decompress_weights

    with progress(quiet) as step:
        if is_dfloat11(model):
            files = decompress_dfloat11(model, output, progress=step)
        else:
            files = decompress_weights(model, output, progress=step).all_files
    if json:
        show_json(files)
    else:
        show_table(["file", "MB", "sha256"], [[f.path, f"{f.bytes / 1e6:.2f}", f.sha256[:16]] for f in files])
    return 0


def verify_lossless(folder: Path, json: bool, quiet: bool) -> int:
    """Check every bit of a folder that `compress` made, and of dfloat11's what can be; a wrong one is an error."""
    from edgekit.dfloat11_folder import is_dfloat11, verify_dfloat11
    from edgekit.lossless import verify_weights

    if is_dfloat11(folder):
        with progress(quiet) as step:
            _show_streams(verify_dfloat11(folder, progress=step), json)
        return 0
    with progress(quiet) as step:
        manifest = verify_weights(folder, progress=step)
    if json:
        show_json(summarize(folder, manifest))
        return 0
    tensors = sum(len(file.tensors) for file in manifest.files)
    show_pairs(
        [
            ("files", f"ok  {len(manifest.all_files)} files have the sha256 of {folder / 'lossless.json'}"),
            ("tensors", f"ok  {tensors} tensors decode to the bits of the source"),
        ]
    )
    return 0


def _show_streams(found: StreamCheck, json: bool) -> None:
    if json:
        show_json(found)
        return
    show_pairs(
        [
            ("files", f"ok  {found.files} safetensors files are whole, with {found.raw_tensors} raw tensors"),
            ("streams", f"ok  {found.streams} decode to all {found.weights} weights of {found.tensors} tensors"),
            ("source", f"not checked: {found.not_checked}"),
        ]
    )


def summarize(folder: Path, manifest: LosslessManifest) -> Summary:
    """Count tensors and bytes by codec, and those that stayed raw by their reason."""
    tensors = [tensor for file in manifest.files for tensor in file.tensors]
    codecs = dict.fromkeys(tensor.codec for tensor in tensors)
    reasons = dict.fromkeys(tensor.reason for tensor in tensors if tensor.reason)
    stored = [_counted([t for t in tensors if t.codec == codec]) for codec in codecs]
    raw = [_counted([t for t in tensors if t.reason == reason], reason) for reason in reasons]
    return Summary(
        folder=str(folder),
        bytes_before=sum(file.bytes for file in manifest.files),
        bytes_after=sum(file.stored_bytes for file in manifest.files),
        by_codec=_largest_first(stored),
        raw=_largest_first(raw),
    )


def _largest_first(stored: Sequence[StoredAs]) -> tuple[StoredAs, ...]:
    return tuple(sorted(stored, key=lambda one: -one.bytes_before))


def _counted(tensors: Sequence[TensorRecord], reason: str | None = None) -> StoredAs:
    """The sum of tensors with the same codec."""
    return StoredAs(
        codec=tensors[0].codec,
        reason=reason,
        tensors=len(tensors),
        weights=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes_before=sum(tensor.bytes for tensor in tensors),
        bytes_after=sum(tensor.stored_bytes for tensor in tensors),
    )


def _show(summary: Summary) -> None:
    rows = [_row(s.codec, str(s.tensors), s.weights, s.bytes_before, s.bytes_after) for s in summary.by_codec]
    weights, tensors = sum(s.weights for s in summary.by_codec), sum(s.tensors for s in summary.by_codec)
    rows.append(_row("all, with headers", str(tensors), weights, summary.bytes_before, summary.bytes_after))
    show_table(["stored as", "tensors", "MB before", "MB after", "bits per weight", "share"], rows)
    for stored in summary.raw[:REASONS_SHOWN]:
        plural = "s" * (stored.tensors != 1)
        say(f"raw: {stored.tensors} tensor{plural}, {stored.bytes_before / 1e6:.2f} MB: {stored.reason}")
    if len(summary.raw) > REASONS_SHOWN:
        say(f"raw: and {len(summary.raw) - REASONS_SHOWN} more reasons, see --json")


def _row(name: str, tensors: str, weights: int, before: int, after: int) -> list[str]:
    rate = f"{8 * after / weights:.2f}" if weights else ""
    share = f"{after / before:.1%}".replace("%", " %") if before else ""
    return [name, tensors, f"{before / 1e6:.2f}", f"{after / 1e6:.2f}", rate, share]
