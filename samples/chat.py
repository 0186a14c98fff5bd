"""A conversation with a small language model, as text that streams.

Make a bundle from any folder with a Llama-, Qwen- or Gemma-shaped model, then talk to it:
    edgekit export -m FOLDER -d raspberrypi5 --precision int8-dynamic --context 1024 -o out
Run it:  python samples/chat.py out [--sample]
"""

from __future__ import annotations

import sys

import edgekit


def main(path: str, sampling: edgekit.Sampling) -> None:
    bundle = edgekit.Bundle.open(path)
    messages: list[dict[str, str]] = []
    with edgekit.open_session(bundle) as session:
        while (line := read()) is not None:
            messages.append({"role": "user", "content": line})
            while True:
                prompt = messages if "chat_template.jinja" in bundle.assets() else line
                try:
                    reply = edgekit.generate(bundle, prompt, session=session, max_tokens=200, sampling=sampling)
                    break
                except edgekit.EdgekitError:  # longer than the cache: forget the oldest question and its answer
                    if len(messages) < 3:
                        raise
                    del messages[:2]
            for piece in reply:
                print(piece, end="", flush=True)
            print()
            messages.append({"role": "assistant", "content": reply.text})


def read() -> str | None:
    """A line from the person, or None at the end."""
    try:
        return input("> ")
    except EOFError:
        return None


if __name__ == "__main__":
    warm = edgekit.Sampling(temperature=0.8, top_p=0.95) if "--sample" in sys.argv else edgekit.Sampling()
    main(sys.argv[1], warm)
