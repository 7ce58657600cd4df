"""Anchors: general prompts with the base's own answers, on which training holds the adapter to the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintbook.config import SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.request import Request
from mintbook.model.batch import NO_ADAPTER
from mintbook.model.renderer import Renderer
from mintbook.train.examples import Example

ANSWER_TOKENS = 12
TOP = 64
GROUP = 8


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """A prompt with the base's greedy answer of n tokens, and what the base thought of each of them.

    ``top_ids`` and ``top_logprobs`` ``[n, 64]`` are the base's likeliest tokens at every place of the answer.
    """

    example: Example
    top_ids: Tensor
    top_logprobs: Tensor


def anchor_prompts() -> list[str]:
    """Return the prompts that ship with mintbook; none is a question of its evaluations."""
    prompts: list[str] = json.loads(files("mintbook.train").joinpath("anchors.json").read_text())
    return prompts


def load_anchors(
    engine: Engine, renderer: Renderer, cache: Path, say: Callable[[str, float, float], None]
) -> list[Anchor]:
    """Return the anchors of the resident base.

    They are the base's alone, so they are made once and kept in ``cache``.
    """
    prompts = anchor_prompts()
    if cache.is_file():
        with safe_open(cache, framework="pt") as file:
            kept = json.loads(file.metadata()["anchors"])
            if kept["prompts"] == prompts and kept["top"] == TOP and kept["answer_tokens"] == ANSWER_TOKENS:
                return _anchors(kept["pairs"], file.get_tensor("top_ids"), file.get_tensor("top_logprobs"))
    pairs = _answers(engine, renderer, prompts, say)
    ids, logprobs = _tops(engine, pairs, say)
    cache.parent.mkdir(parents=True, exist_ok=True)
    kept = {"prompts": prompts, "top": TOP, "answer_tokens": ANSWER_TOKENS, "pairs": pairs}
    beside = cache.with_suffix(".tmp")
    save_file({"top_ids": ids, "top_logprobs": logprobs}, beside, {"anchors": json.dumps(kept)})
    beside.rename(cache)
    return _anchors(pairs, ids, logprobs)


def _answers(
    engine: Engine, renderer: Renderer, prompts: list[str], say: Callable[[str, float, float], None]
) -> list[tuple[list[int], list[int]]]:
    sampling = SampleConfig(max_tokens=ANSWER_TOKENS)
    requests = [
        Request(tokens=tuple(renderer.prompt(p)), sampling=sampling, revision="base", end_ids=renderer.end_ids)
        for p in prompts
    ]
    pairs = []
    for number, generation in enumerate([engine.submit(request) for request in requests], start=1):
        answer = generation.result().tokens
        pairs.append((list(generation.request.tokens), list(answer)))
        say("asking the base for its anchor answers, once per base", number, len(requests))
    return pairs


def _tops(
    engine: Engine, pairs: list[tuple[list[int], list[int]]], say: Callable[[str, float, float], None]
) -> tuple[Tensor, Tensor]:
    ids, logprobs = [], []
    for at in range(0, len(pairs), GROUP):
        group = pairs[at : at + GROUP]
        sequences = [[*prompt, *answer[:-1]] for prompt, answer in group]
        found = engine.logits(sequences, [NO_ADAPTER] * len(group), start=[len(prompt) - 1 for prompt, _ in group])
        top = torch.log_softmax(torch.cat(found), dim=-1).topk(min(TOP, found[0].shape[-1]), dim=-1)
        ids.append(top.indices.cpu())
        logprobs.append(top.values.cpu())
        say("reading the base's thoughts about them", at + len(group), len(pairs))
    return torch.cat(ids), torch.cat(logprobs)


def _anchors(pairs: list[tuple[list[int], list[int]]], ids: Tensor, logprobs: Tensor) -> list[Anchor]:
    lengths = [len(answer) for _, answer in pairs]
    return [
        Anchor(
            Example(tokens=(*prompt, *answer), mask=(False,) * len(prompt) + (True,) * len(answer)),
            top_ids,
            top_logprobs,
        )
        for (prompt, answer), top_ids, top_logprobs in zip(
            pairs, torch.split(ids, lengths), torch.split(logprobs, lengths), strict=True
        )
    ]
