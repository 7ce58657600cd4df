"""Anchors: general prompts with the base's own answers, on which training holds the adapter to the base."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintbook.config import SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.generation import Generation
from mintbook.engine.request import Request
from mintbook.model.batch import NO_ADAPTER
from mintbook.model.renderer import Renderer
from mintbook.store.filesystem import sync_file
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
    weight = next(engine.model.model.parameters())
    made_from = {
        "prompts": prompts,
        "top": TOP,
        "answer_tokens": ANSWER_TOKENS,
        "renderer": renderer.digest,
        "dtype": str(weight.dtype),
    }
    kept = _read(cache, made_from)
    if kept is not None:
        return kept
    pairs = _answers(engine, renderer, prompts, say)
    ids, logprobs = _tops(engine, pairs, say)
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    told = json.dumps({"made_from": made_from, "pairs": pairs})
    try:
        save_file({"top_ids": ids, "top_logprobs": logprobs}, beside, {"anchors": told})
        sync_file(beside)
        beside.rename(cache)
    finally:
        beside.unlink(missing_ok=True)
    return _anchors(pairs, ids, logprobs)


def _read(cache: Path, made_from: dict[str, object]) -> list[Anchor] | None:
    """Return the anchors that are kept, or ``None`` when there are none, others, or a file that cannot be read."""
    try:
        with safe_open(cache, framework="pt") as file:
            told = json.loads(file.metadata()["anchors"])
            if told["made_from"] != made_from:
                return None
            # Copies: what safetensors hands out is the file's own memory, which goes when the file is cut short.
            ids, logprobs = (file.get_tensor(name).clone() for name in ("top_ids", "top_logprobs"))
            return _anchors(told["pairs"], ids, logprobs)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # they are made again: nothing is lost but the time


def _answers(
    engine: Engine, renderer: Renderer, prompts: list[str], say: Callable[[str, float, float], None]
) -> list[tuple[list[int], list[int]]]:
    sampling = SampleConfig(max_tokens=ANSWER_TOKENS)
    requests = [
        Request(tokens=tuple(renderer.prompt(p)), sampling=sampling, revision="base", end_ids=renderer.end_ids)
        for p in prompts
    ]
    pairs = []
    running: list[Generation] = []
    try:
        running.extend(engine.submit(request) for request in requests)
        for number, generation in enumerate(running, start=1):
            answer = generation.result().tokens
            pairs.append((list(generation.request.tokens), list(answer)))
            say("asking the base for its anchor answers, once per base", number, len(requests))
    except BaseException:
        for generation in running:
            generation.cancel()
        raise
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
