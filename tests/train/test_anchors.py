"""Anchors: made once per base, honest towards the evaluation, and what the base really thinks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mintbook.engine.engine import Engine
from mintbook.evals.suites import load_general
from mintbook.model.packed_model import PackedModel
from mintbook.model.renderer import Renderer
from mintbook.train.anchors import ANSWER_TOKENS, anchor_prompts, load_anchors


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: Any) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, kv_tokens=4096)
    yield engine
    engine.close()


def words(text: str) -> frozenset[str]:
    return frozenset("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_no_anchor_is_a_question_of_the_evaluation() -> None:
    prompts = anchor_prompts()
    assert len(prompts) == len(set(prompts)) > 60
    for prompt in prompts:
        for question in load_general():
            a, b = words(prompt), words(question.question)
            assert len(a & b) / len(a | b) < 0.75, (prompt, question.question)


def test_anchors_are_the_bases_own_answers_and_thoughts(engine: Engine, tiny_tokenizer: Any, tmp_path: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "deep" / "anchors.safetensors"
    anchors = load_anchors(engine, Renderer(tiny_tokenizer), cache, lambda what, done, total: said.append(what))
    assert said
    assert len(anchors) == len(anchor_prompts())
    anchor = anchors[3]
    start = anchor.example.mask.index(True)
    answer = anchor.example.tokens[start:]
    assert 1 <= len(answer) <= ANSWER_TOKENS
    logits = engine.logits([anchor.example.tokens[:-1]], [-1], start=[start - 1])[0]
    top = torch.log_softmax(logits, dim=-1).topk(64)
    torch.testing.assert_close(anchor.top_logprobs, top.values, rtol=1e-4, atol=1e-4)
    assert tuple(anchor.top_ids[:, 0].tolist()) == answer, "greedy: the likeliest token is the one that was said"

    said.clear()
    again = load_anchors(engine, Renderer(tiny_tokenizer), cache, lambda what, done, total: said.append(what))
    assert not said, "the second time nothing is asked"
    assert [a.example for a in again] == [a.example for a in anchors]
    cache.write_bytes(cache.read_bytes()[:200])
    mended = load_anchors(engine, Renderer(tiny_tokenizer), cache, lambda what, done, total: said.append(what))
    assert said, "a damaged cache is made again"
    assert [a.example for a in mended] == [a.example for a in anchors]
    assert torch.equal(again[3].top_logprobs, anchor.top_logprobs)


def test_making_anchors_can_be_stopped(engine: Engine, tiny_tokenizer: Any, tmp_path: Path) -> None:
    def stop(what: str, done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_anchors(engine, Renderer(tiny_tokenizer), tmp_path / "a.safetensors", stop)
    while not engine.scheduler.idle:
        time.sleep(0.01)
    assert engine.cache.free_tokens == engine.cache.capacity_tokens
    assert list(tmp_path.iterdir()) == []
