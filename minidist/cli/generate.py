"""``minidist generate``: continue prompts with a GPT, many at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="continue prompts with a GPT, many at once",
        description="Continue prompts with a GPT on Shakespeare's characters that `minidist "
        "compress --task gpt` has written. Prompts come from a file, one a line, or from the "
        "terminal. Several are answered at once, and each is printed when it ends; one alone is "
        "printed letter by letter.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.add_argument("--model", required=True, help="a safetensors file")
    generate.add_argument("--prompts", help="a text file; without it, lines from the terminal")
    generate.add_argument("--count", type=int, default=100, help="new characters of each answer")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: the most likely")
    generate.add_argument("--top-k", type=int, default=20, help="among so many characters")
    generate.add_argument("--at-once", type=int, default=8, help="sequences in the batch at most")
    generate.add_argument("--seed", type=int, default=0, help="of the first prompt; then + 1 each")
    generate.set_defaults(run=answer)


def answer(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.data import Vocabulary, shakespeare_text
    from minidist.inference import Engine, Event, Request, load_gpt, run

    vocabulary = Vocabulary(shakespeare_text())
    engine = Engine(load_gpt(options.model), options.at_once)
    if engine.vocabulary != len(vocabulary):
        raise ValueError(
            f"{options.model} has {engine.vocabulary} tokens, and Shakespeare's text "
            f"{len(vocabulary)} characters: it was trained on something else"
        )
    if options.prompts is not None and not Path(options.prompts).is_file():
        raise ValueError(f"there is no file {options.prompts}")
    lines = Path(options.prompts).read_text() if options.prompts is not None else sys.stdin.read()
    prompts = lines.splitlines()
    requests = [
        Request(
            tuple(vocabulary.encode(prompt).tolist()),
            options.count,
            options.temperature,
            options.top_k,
            options.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]
    texts = list(prompts)

    def told(index: int, event: Event) -> None:
        letter = vocabulary.decode([event.token])
        texts[index] += letter
        if len(prompts) == 1:
            print(letter, end="" if not event.reason else "\n", flush=True)
        elif event.reason:
            print(f"── {index + 1} " + "─" * 60 + f"\n{texts[index]}", flush=True)

    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
    timing = run(engine, requests, told=told)
    for index, reason in timing.refused.items():
        print(f"minidist generate: prompt {index + 1} is refused: {reason}", file=sys.stderr)
    print(
        f"{timing.tokens} tokens in {timing.seconds:.2f} s: {timing.tokens_a_second:.0f} a second; "
        f"first token after {timing.first_token() * 1e3:.0f} ms, then "
        f"{timing.each_token() * 1e3:.1f} ms a token (99 %: {timing.each_token(99) * 1e3:.1f} ms)"
    )
    return int(bool(timing.refused))
