"""The half of `edgekit run` that makes text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgekit.cli.output import show_json

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.generation import Sampling
    from edgekit.session import Session


def run_text(
    bundle: Bundle, session: Session, prompt: str, chat: bool, max_tokens: int, sampling: Sampling, as_json: bool
) -> int:
    """Stream the answer to stdout, and say on stderr why it ended and how fast it was."""
    from edgekit.decoding import generate

    messages = [{"role": "user", "content": prompt}]
    reply = generate(bundle, messages if chat else prompt, session=session, max_tokens=max_tokens, sampling=sampling)
    for piece in reply:
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    first, total = reply.times_s[0], reply.times_s[-1]
    if as_json:
        show_json(
            {
                "prompt": prompt,
                "prompt_ids": reply.prompt_ids,
                "text": reply.text,
                "ids": reply.ids,
                "finish": reply.finish,
                "sampling": sampling,
                "times_s": reply.times_s,
            }
        )
        return 0
    sys.stdout.write("\n")
    later = len(reply.times_s) - 1
    speed = f", then {later / (total - first):.1f} tokens/s" if later else ""
    print(f"[{len(reply.ids)} tokens, {reply.finish}; the first after {1e3 * first:.0f} ms{speed}]", file=sys.stderr)
    return 0
