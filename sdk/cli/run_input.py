"""`edgekit run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli import options as given
from edgekit.cli.output import say, show_json, show_pairs, show_table
from edgekit.errors import InvalidInput


@given.verb("run", "edgekit run out --input photo.jpg\n\nNext:  edgekit profile out")
def run(
    bundle: given.BundlePath,
    input: Annotated[list[str], typer.Option("--input", "-i", help="Photo, text, or file.npz. Repeatable.")],
    save: Annotated[Path | None, typer.Option("--save", help="Write the raw output tensors to this .npz.")] = None,
    threads: given.Threads = 1,
    json: given.Json = False,
) -> int:
    """Run a bundle on a photograph, a text or arrays, with the preprocessing it carries."""
    import numpy as np

    from edgekit.bundle import Bundle
    from edgekit.inference import answer, open_session, prepare

    found = Bundle.open(bundle)
    if save and len(input) > 1:
        raise InvalidInput("--save takes one --input")
    answers = []
    with open_session(found, threads=threads) as session:
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
