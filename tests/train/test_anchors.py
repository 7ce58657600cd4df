"""Anchors: made once per base, honest towards the evaluation, and what the base really thinks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mintbook.config import EngineConfig
from mintbook.engine.engine import Engine
from mintbook.engine.generation import Generation
from mintbook.engine.request import Request
from mintbook.errors import CapacityError
from mintbook.evals.suites import load_general
from mintbook.model.packed_model import PackedModel
from mintbook.model.renderer import Renderer
from mintbook.train import anchors as anchors_module
from mintbook.train.anchors import ANSWER_TOKENS, Anchor, anchor_prompts, load_anchors


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: Any) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=4096))
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
    _wait_until_idle(engine)
    assert list(tmp_path.iterdir()) == []


def _wait_until_idle(engine: Engine) -> None:
    last = time.monotonic() + 30
    while not engine.scheduler.idle:
        assert time.monotonic() < last
        time.sleep(0.01)
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_what_was_asked_is_cancelled_when_it_goes_wrong(
    engine: Engine, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit
    asked: list[Generation] = []

    def until_the_third(request: Request) -> Generation:
        if len(asked) == 2:
            raise CapacityError("no room")
        asked.append(submit(request))
        return asked[-1]

    def stop(what: str, done: float, total: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "submit", until_the_third)
    with pytest.raises(CapacityError):
        load_anchors(engine, Renderer(tiny_tokenizer), tmp_path / "a.safetensors", lambda what, done, total: None)
    assert [generation.cancelled for generation in asked] == [True, True]
    _wait_until_idle(engine)

    asked.clear()
    monkeypatch.setattr(engine, "submit", lambda request: asked.append(submit(request)) or asked[-1])
    with pytest.raises(KeyboardInterrupt):
        load_anchors(engine, Renderer(tiny_tokenizer), tmp_path / "a.safetensors", stop)
    assert len(asked) == len(anchor_prompts())
    assert all(generation.cancelled or generation.done for generation in asked)
    assert asked[-1].cancelled
    _wait_until_idle(engine)


MADE = ([([5, 6], [7])], torch.tensor([[7, 8]]), torch.tensor([[-0.1, -3.0]]))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Anchors of one prompt that are made without an engine; the list grows whenever they are."""
    asked: list[str] = []
    monkeypatch.setattr(anchors_module, "anchor_prompts", lambda: ["Hi"])
    monkeypatch.setattr(anchors_module, "_answers", lambda *given: asked.append("answers") or MADE[0])
    monkeypatch.setattr(anchors_module, "_tops", lambda *given: MADE[1:])
    return asked


def load(cache: Path, *, renderer: str = "r1", dtype: torch.dtype = torch.float32) -> list[Anchor]:
    model = torch.nn.Linear(1, 1, dtype=dtype)
    engine = SimpleNamespace(model=SimpleNamespace(model=model))
    return load_anchors(engine, SimpleNamespace(digest=renderer), cache, lambda *said: None)  # type: ignore[arg-type]


def test_anchors_of_another_precision_or_renderer_are_made_again(counted: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "a.safetensors"
    for number, options in enumerate([{}, {"dtype": torch.bfloat16}, {"renderer": "r2"}], start=1):
        for _ in range(2):
            (anchor,) = load(cache, **options)
            assert anchor.example.tokens == (5, 6, 7)
        assert len(counted) == number


@pytest.mark.parametrize("damage", ["empty", "short", "no metadata", "no JSON", "no tensor"])
def test_a_damaged_cache_is_as_good_as_none(counted: list[str], tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "a.safetensors"
    load(cache)
    whole = cache.read_bytes()
    tensors = {"top_ids": MADE[1], "top_logprobs": MADE[2]}
    if damage == "empty":
        cache.write_bytes(b"")
    elif damage == "short":
        cache.write_bytes(whole[:-4])
    elif damage == "no metadata":
        save_file(tensors, cache)
    elif damage == "no JSON":
        save_file(tensors, cache, {"anchors": "{"})
    else:
        with safe_open(cache, framework="pt") as file:
            told = file.metadata()
        save_file({"top_ids": MADE[1]}, cache, told)
    load(cache)
    load(cache)
    assert len(counted) == 2
    assert cache.read_bytes() == whole


def test_a_cache_that_cannot_be_written_leaves_nothing_beside_it(counted: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "a.safetensors"
    cache.mkdir()
    with pytest.raises(IsADirectoryError):
        load(cache)
    assert counted
    assert list(tmp_path.iterdir()) == [cache]


def test_makers_at_once_write_beside_each_other_and_to_disk_before_the_name(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "a.safetensors"
    beside: list[Path] = []

    def sync(path: Path) -> None:
        assert path.is_file()
        assert not cache.exists()
        beside.append(path)
        if len(beside) == 1:
            load(cache)  # another maker, in the midst of the first
            cache.unlink()

    monkeypatch.setattr(anchors_module, "sync_file", sync)
    load(cache)
    assert len(set(beside)) == len(beside) == len(counted) == 2
    assert list(tmp_path.iterdir()) == [cache]
