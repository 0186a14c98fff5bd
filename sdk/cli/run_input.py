"""`edgekit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import options as given
from edgekit.cli.output import say, show_json, show_pairs, show_table
from edgekit.cli.places import opened_place
from edgekit.cli.run_text import run_text
from edgekit.errors import InvalidInput

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.session import Session


@given.verb("run", "edgekit run out --input photo.jpg\n\nNext:  edgekit profile out")
def run(
    bundle: given.BundlePath,
    input: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="Photo, text, or file.npz. Repeatable.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option("--point", help="X,Y on an object to segment, X,Y,0 beside it. Repeatable.")
    ] = None,
    box: Annotated[list[str] | None, typer.Option("--box", help="X0,Y0,X1,Y1 around an object. Repeatable.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the raw output tensors to this .npz, a mask to this .png.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text for a language model to continue.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Most tokens to answer with.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw among the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same text.")] = 0,
    threads: given.Threads = 1,
    device: given.Place = None,
    time_limit: given.TimeLimit = None,
    offline_wheels: given.OfflineWheels = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Run a bundle on a photograph, a text or arrays; segment what points and boxes mark; or continue a prompt."""
    if (prompt is None) == (not input):
        raise InvalidInput("run takes --input FILE_OR_TEXT, or --prompt TEXT for a language model, and one of the two")
    if save and len(input or []) > 1:
        raise InvalidInput("--save takes one --input")
    from edgekit.bundle import Bundle
    from edgekit.cli.run_masks import run_masks
    from edgekit.generation import Sampling
    from edgekit.parts import BundleInParts, is_in_parts
    from edgekit.place import open_at
    from edgekit.segmenting import SegmentSession

    parted = is_in_parts(bundle)
    if (point or box) and not parted:
        raise InvalidInput(f"--point and --box are for a model that segments, and '{bundle}' holds none")
    if parted:
        if prompt is not None or len(input or []) > 1:
            raise InvalidInput(f"'{bundle}' segments one photograph at a time: give one --input, --point and --box")
        whole = BundleInParts.open(bundle)
        with (
            opened_place(device, time_limit, offline_wheels, quiet or device is None) as (place, _),
            SegmentSession(whole, threads=threads, place=place) as segmenter,
        ):
            return run_masks(segmenter, (input or [""])[0], point or (), box or (), save, json)
    found = Bundle.open(bundle)
    with (
        opened_place(device, time_limit, offline_wheels, quiet or device is None) as (place, _),
        open_at(place, found, threads) as session,
    ):
        if prompt is not None:
            sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
            return run_text(found, session, prompt, chat, max_tokens, sampling, json)
        return _run_inputs(found, session, input or [], save, json)


def _run_inputs(found: Bundle, session: Session, input: list[str], save: Path | None, json: bool) -> int:
    import numpy as np

    from edgekit.inference import answer, prepare

    answers = []
    for source in input:
        outputs = session.run(prepare(found, source))
        answers.append({"input": source, **answer(found, outputs)})
    stats = session.stats()
    if save:
        np.savez(save, **outputs)  # type: ignore[arg-type]
    if json:
        show_json({"answers": answers, "stats": stats})
        return 0
    for each in answers:
        _show(each)
    return 0


def _show(answer: dict[str, Any]) -> None:
    say(answer["input"])
    if "labels" in answer:
        show_table(["p", "label", "index"], [[f"{r['p']:.3f}", r["label"], str(r["index"])] for r in answer["labels"]])
    elif "embedding" in answer:
        vector = answer["embedding"]
        shown = ", ".join(f"{value:+.4f}" for value in vector[:6])
        show_pairs([("embedding", f"[{shown}, ...] of {len(vector)}"), ("norm", f"{answer['norm']:.4f}")])
    else:
        keys = ("shape", "dtype", "mean", "std", "min", "max")
        rows = [[name, *(_cell(figures[key]) for key in keys)] for name, figures in answer["outputs"].items()]
        show_table(["output", *keys], rows)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
