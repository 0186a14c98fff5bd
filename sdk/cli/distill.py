"""`edgekit distill`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import options as given
from edgekit.cli.output import progress, say, show_json, show_pairs, show_table

if TYPE_CHECKING:
    from edgekit.distill.card import Card

Device = Annotated[str, typer.Option("--device", "-d", help="cpu, cuda or cuda:1; under torchrun, cuda is one each.")]


@given.verb("distill", "edgekit distill -m sam --site vision_encoder --student npu-conv --params 0.1 --data photos "
            "-o small\n\nNext:  edgekit export -m small -d raspberrypi5 -o out")  # fmt: skip
def distill(
    model: given.ModelRef,
    site: Annotated[str, typer.Option("--site", help="Module to swap: its path or the end of it; analyze --sites.")],
    data: Annotated[str, typer.Option("--data", help="Images to learn from: folder, file.npz, builtin:NAME.")],
    output: given.Output,
    student: Annotated[
        str, typer.Option("--student", help="npu-conv, repvit, tiny-vit, or file.py:factory, called with the site.")
    ] = "npu-conv",
    params: Annotated[
        float | None, typer.Option("--params", help="Its parameters: a share up to 1 (0.1 if left out), or a number.")
    ] = None,
    neck: Annotated[str | None, typer.Option("--neck", help="Module of the site to end the student with.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="How answers compare; by the model if left out.")] = None,
    truth: Annotated[Path | None, typer.Option("--truth", help="Folder with what is true of the images.")] = None,
    cache: Annotated[str, typer.Option("--cache", help="Embeddings: ram, stream, or a folder to keep them.")] = "ram",
    steps: Annotated[int, typer.Option("--steps", help="Most steps of stage 1.")] = 1000,
    batch: Annotated[int, typer.Option("--batch", help="Images a step, over all processes.")] = 32,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate at its peak.")] = 1e-3,
    loss: Annotated[str, typer.Option("--loss", help="mse, huber, cosine or whitened.")] = "mse",
    ema: Annotated[float, typer.Option("--ema", help="Decay of the average of weights; 0: none.")] = 0.999,
    precision: Annotated[str, typer.Option("--precision", help="Of training: fp32, bf16 or fp16.")] = "fp32",
    refine: Annotated[int, typer.Option("--refine", help="Steps through the frozen rest after that.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same student on a CPU.")] = 0,
    device: Device = "cpu",
    min_r2: Annotated[float | None, typer.Option("--min-r2", help="Gate: least R2 of the embeddings.")] = None,
    min_agreement: Annotated[
        float | None, typer.Option("--min-agreement", help="Gate: least agreement with the teacher, of every prompt.")
    ] = None,
    min_quality_share: Annotated[
        float | None, typer.Option("--min-quality-share", help="Gate: least share of the teacher's quality on --truth.")
    ] = None,
    trust_remote_code: given.TrustRemoteCode = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a distilled model that is there.")] = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> int:
    """Swap a heavy encoder for a light one that learns its embeddings, and say on a card how good it is.

    Nothing else of the model changes. The folder is a model like any other: export it. A run that was stopped goes on
    with the same command.
    """
    from edgekit.distill.architecture.own_student import is_own
    from edgekit.distill.decoupled import distill as distill_model
    from edgekit.distill.distill_options import DistillOptions
    from edgekit.distill.refine import RefineOptions
    from edgekit.distill.training.fit_options import FitOptions
    from edgekit.source import load
    from edgekit.sources.distilled import RUNS_CODE

    fit: dict[str, Any] = {"precision": precision, "loss": loss, "seed": seed, "ema": ema}
    options = DistillOptions(
        site=site, data=data, student=student, params=params, neck=neck, task=task,
        truth=str(truth) if truth else None, cache=cache,
        fit=FitOptions(steps=steps, batch=batch, lr=lr, **fit),
        refine=RefineOptions(steps=refine, seed=seed) if refine else None,
        device=device, min_r2=min_r2, min_agreement=min_agreement, min_quality_share=min_quality_share, force=force,
    )  # fmt: skip
    with progress(quiet) as step:
        step(f"load {model}")
        loaded = load(model, trust_remote_code=trust_remote_code)
        card = distill_model(loaded, output, options, progress=step)
    if card is None:  # another process than the first that torchrun started
        return 0
    if json:
        show_json(card)
    else:
        _show(card, output, is_own(student) or loaded.source.kind in RUNS_CODE)
    return 0


def _show(card: Card, output: Path, needs_code: bool) -> None:
    from edgekit.distill.card_page import card_table

    show_table(*card_table(card))
    say("")
    show_pairs([("card", str(output / "card.html")), ("model", str(output))])
    for verdict in card.verdicts:
        say(f"- {verdict}")
    trusted = " --trust-remote-code" if needs_code else ""
    say(f"\nNext:  edgekit export -m {shlex.quote(str(output))} -d raspberrypi5 -o out{trusted}")
