"""What a step's logits are read for, through the engine: prompt logprobs, penalties, stop tokens, draws that repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mintbook.config import EngineConfig, SampleConfig
from mintbook.engine.detokenizer import Detokenizer
from mintbook.engine.engine import Engine
from mintbook.engine.generation import Generation
from mintbook.engine.readout import Readout
from mintbook.engine.request import Choice, Completion, Request
from mintbook.engine.sampler import Sampler
from mintbook.engine.sequence import Sequence
from mintbook.errors import RunFailed
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.packed_model import PackedModel


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: object) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=4096, prefill_tokens=32))
    yield engine
    engine.close()


def ask(engine: Engine, text: str, **sampling: object) -> Request:
    tokens = tuple(engine.tokenizer(text).input_ids)
    return Request(tokens=tokens, sampling=SampleConfig(**sampling), revision="base", end_ids=frozenset())


def test_prompt_logprobs_are_those_of_one_forward_whatever_the_chunks(engine: Engine) -> None:
    texts = (
        "a prompt of more than thirty-two tokens is read in chunks, and these words make it " + "longer " * 6,
        "yes",
    )
    requests = [ask(engine, text, max_tokens=3, prompt_logprobs=True) for text in texts]
    plain = engine.submit(ask(engine, texts[0], max_tokens=3))
    answers = [g.result() for g in [engine.submit(r) for r in requests]]
    expected = engine.logprobs([r.tokens for r in requests], [-1] * 2)
    for request, answer, logprobs in zip(requests, answers, expected, strict=True):
        assert answer.prompt_logprobs is not None
        assert len(answer.prompt_logprobs) == len(request.tokens) - 1
        torch.testing.assert_close(torch.tensor(answer.prompt_logprobs), logprobs, rtol=1e-4, atol=1e-4)
        assert answer.logprobs is None
    assert len(requests[0].tokens) > 3 * engine.config.prefill_tokens
    assert plain.result().prompt_logprobs is None
    assert plain.result().tokens == answers[0].tokens
    one_token = Request(tokens=(5,), sampling=requests[0].sampling, revision="base", end_ids=frozenset())
    assert engine.submit(one_token).result().prompt_logprobs == ()


def test_prompt_logprobs_that_are_not_finite_fail_their_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.model.logits

    def broken(batch: PackedBatch, keep: torch.Tensor) -> torch.Tensor:
        logits = real(batch, keep)
        logits[len(logits) // 2] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "logits", broken)
    with pytest.raises(RunFailed, match="not finite"):
        engine.submit(ask(engine, "x" * 100, max_tokens=3, prompt_logprobs=True)).result()
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_penalties_see_the_whole_prompt_across_chunks_and_the_answer(engine: Engine) -> None:
    options: dict[str, float] = {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    request = ask(engine, "abcdefghij" * 7, max_tokens=12, **options)
    assert len(request.tokens) > 2 * engine.config.prefill_tokens
    tokens = list(request.tokens)
    for _ in range(12):
        row = engine.logits([tokens], [-1], start=[len(tokens) - 1])[0][0]
        answer = tokens[len(request.tokens) :]
        for token in set(tokens):
            row[token] = row[token] / 1.4 if row[token] > 0 else row[token] * 1.4
        for token in set(answer):
            row[token] -= 0.3 + 0.2 * answer.count(token)
        tokens.append(int(row.argmax()))
    assert list(engine.submit(request).result().tokens) == tokens[len(request.tokens) :]
    assert engine.submit(ask(engine, "abcdefghij" * 7, max_tokens=12)).result().tokens != tuple(tokens[-12:])


def test_a_stop_token_ends_an_answer_and_adds_no_text(engine: Engine) -> None:
    free = engine.submit(ask(engine, "hello", max_tokens=24, temperature=1.0, seed=3)).result()
    stop = free.tokens[9]
    answer = engine.submit(ask(engine, "hello", max_tokens=24, temperature=1.0, seed=3, stop_ids=stop)).result()
    first = free.tokens.index(stop)
    assert answer.stop_reason == "stop"
    assert answer.tokens == free.tokens[: first + 1]
    assert answer.text == engine.tokenizer.decode(free.tokens[:first])


def test_a_draw_is_bit_for_bit_the_same_alone_and_among_32(engine: Engine) -> None:
    options = {"max_tokens": 10, "temperature": 1.2, "top_p": 0.95, "repetition_penalty": 1.1, "logprobs": True}
    request = ask(engine, "hello", seed=11, **options)
    alone = engine.submit(request).result()
    others = [engine.submit(ask(engine, "what is a boat?"[: 3 + i % 9], seed=i, **options)) for i in range(31)]
    among = engine.submit(request).result()
    assert among.tokens == alone.tokens
    assert among.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    for generation in others:
        generation.result()


def test_a_prompt_that_is_scored_is_read_whole_though_it_is_kept(engine: Engine) -> None:
    plain = replace(ask(engine, "a beginning that many share: " * 3, max_tokens=2), cache_key="base")
    scored = replace(plain, sampling=SampleConfig(max_tokens=2, prompt_logprobs=True))
    engine.submit(plain).result()
    answers = [engine.submit(scored).result() for _ in range(2)]
    assert answers[0].prompt_logprobs is not None
    assert len(answers[0].prompt_logprobs) == len(plain.tokens) - 1
    assert answers[1] == answers[0]


def test_what_is_set_aside_goes_on_drawing_as_if_it_had_not_been(
    tiny_model: PackedModel, tiny_tokenizer: object
) -> None:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=128, prefill_tokens=32))
    options = {"max_tokens": 60, "temperature": 1.0, "frequency_penalty": 0.5, "prompt_logprobs": True}
    requests = [ask(engine, "what is a boat?", seed=seed, **options) for seed in range(4)]
    alone = [engine.submit(request).result() for request in requests]
    together = [g.result() for g in [engine.submit(request) for request in requests]]
    assert engine.counters().preemptions > 0
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.prompt_logprobs == pytest.approx(b.prompt_logprobs, abs=1e-4)
    engine.close()


def test_an_awaited_answer_has_all_that_was_asked_for(engine: Engine) -> None:
    request = ask(engine, "hello", max_tokens=3, temperature=1.0, seed=4, top_logprobs=2, prompt_logprobs=True)

    async def answer() -> Completion:
        return await engine.submit(request)

    found = asyncio.run(answer())
    assert found == engine.submit(request).result()
    assert found.seed == 4
    assert found.top_logprobs is not None
    assert [len(top) for top in found.top_logprobs] == [2, 2, 2]


def test_every_sequence_of_a_step_is_read_from_its_own_rows() -> None:
    torch.manual_seed(0)
    logits, bounds = torch.randn(9, 30), (0, 4, 7, 9)
    config = SampleConfig(prompt_logprobs=True)
    asked = [Request(tokens=t, sampling=config, revision="a@1", end_ids=frozenset()) for t in ((1, 2, 3, 4), (5, 6, 7))]
    asked.append(Request(tokens=(8, 9, 10), sampling=config, revision="a@1", end_ids=frozenset()))
    planned = [
        (Sequence(Generation(r), Detokenizer(None, ()), Sampler(r, torch.device("cpu"))), Piece(r.tokens[:n]))
        for r, n in zip(asked, (4, 3, 2), strict=True)
    ]
    readout = Readout(planned, bounds)
    broken = logits[readout.rows].clone()
    broken[readout.rows.index(1)] = float("nan")
    outcomes = readout.outcomes(broken)
    (first, second, third), logprobs = [s for s, _ in planned], torch.log_softmax(logits, -1)
    assert [s for s, _ in outcomes] == [first, second], "one end for the one that is broken, none for the unread"
    assert isinstance(outcomes[0][1], RunFailed)
    assert outcomes[1][1] == Choice(int(logits[6].argmax()))
    assert second.prompt_logprobs == logprobs[[4, 5], [6, 7]].tolist()
    assert third.prompt_logprobs == logprobs[[7, 8], [9, 10]].tolist()
