"""Anchors: general prompts with the base's own answers, on which training holds the adapter to the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from mintbook.config import SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.request import Request
from mintbook.model.renderer import Renderer
from mintbook.train.examples import Example

ANSWER_TOKENS = 48


def anchor_prompts() -> list[str]:
    """Return the prompts that ship with mintbook; none is a question of its evaluations."""
    prompts: list[str] = json.loads(files("mintbook.train").joinpath("anchors.json").read_text())
    return prompts


def load_anchors(
    engine: Engine, renderer: Renderer, cache: Path, say: Callable[[str, float | None], None]
) -> list[Example]:
    """Return the anchors as token sequences whose targets are the base's greedy answers.

    The answers are the base's alone, so they are made once per base and kept in ``cache``.
    """
    prompts = anchor_prompts()
    if cache.is_file():
        kept = json.loads(cache.read_text())
        if kept["prompts"] == prompts:
            return [_example(entry["prompt"], entry["answer"]) for entry in kept["tokens"]]
    sampling = SampleConfig(max_tokens=ANSWER_TOKENS)
    requests = [
        Request(tokens=tuple(renderer.prompt(p)), sampling=sampling, revision="base", end_ids=renderer.end_ids)
        for p in prompts
    ]
    running = [engine.submit(request) for request in requests]
    entries = []
    for number, generation in enumerate(running, start=1):
        answer = generation.result().tokens
        entries.append({"prompt": list(generation.request.tokens), "answer": list(answer)})
        say("asking the base for its anchor answers", number / len(running))
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_suffix(".tmp")
    beside.write_text(json.dumps({"prompts": prompts, "tokens": entries}))
    beside.rename(cache)
    return [_example(entry["prompt"], entry["answer"]) for entry in entries]


def _example(prompt: list[int], answer: list[int]) -> Example:
    return Example(tokens=(*prompt, *answer), mask=(False,) * len(prompt) + (True,) * len(answer))
