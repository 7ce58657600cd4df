"""The engine: batches that equal one-by-one, streaming, stops, cancellation, and an end for every request."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mintbook.config import EngineConfig, SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.request import Choice, Completion, Request
from mintbook.engine.sampler import Sampler
from mintbook.errors import CapacityError, ConfigError, MintbookError
from mintbook.model.packed_model import PackedModel

PROMPTS = ("hello", "what is a boat?", "x" * 40, "y")


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: object) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=1024, prefill_tokens=32))
    yield engine
    engine.close()


def ask(engine: Engine, text: str, end_ids: frozenset[int] = frozenset(), **sampling: object) -> Request:
    tokens = tuple(engine.tokenizer(text).input_ids)
    return Request(tokens=tokens, sampling=SampleConfig(**sampling), revision="base", end_ids=end_ids)


def one_by_one(engine: Engine, request: Request) -> list[int]:
    """Greedy decoding by whole forwards, without a cache."""
    tokens = list(request.tokens)
    for _ in range(request.sampling.max_tokens):
        logits = engine.logits([tokens], [-1], start=[len(tokens) - 1])[0]
        tokens.append(int(logits[0].argmax()))
    return tokens[len(request.tokens) :]


def test_a_batch_answers_as_each_prompt_alone(engine: Engine) -> None:
    requests = [ask(engine, text, max_tokens=8 + i) for i, text in enumerate(PROMPTS)]
    answers = [g.result() for g in [engine.submit(r) for r in requests]]
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.tokens) == one_by_one(engine, request)
        assert answer.stop_reason == "length"
        assert answer.prompt_tokens == len(request.tokens)
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_logprobs_are_those_of_the_whole_distribution(engine: Engine) -> None:
    request = ask(engine, "hello", max_tokens=5, logprobs=True, temperature=0.7, top_k=3, seed=1)
    answer = engine.submit(request).result()
    whole = [*request.tokens, *answer.tokens]
    expected = engine.logprobs([whole], [-1])[0][-5:]
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_a_seed_gives_the_same_sample_whatever_shares_the_batch(engine: Engine) -> None:
    request = ask(engine, "hello", max_tokens=12, temperature=1.0, seed=7)
    alone = engine.submit(request).result().tokens
    others = [
        engine.submit(ask(engine, text, max_tokens=12, temperature=1.0, seed=i)) for i, text in enumerate(PROMPTS)
    ]
    again = engine.submit(request).result().tokens
    assert again == alone
    assert len({g.result().tokens for g in others}) > 1
    assert engine.submit(ask(engine, "hello", max_tokens=12, temperature=1.0, seed=8)).result().tokens != alone


def test_end_tokens_end_an_answer_and_are_not_text(engine: Engine) -> None:
    free = engine.submit(ask(engine, "hello", max_tokens=8)).result()
    ended = engine.submit(ask(engine, "hello", frozenset({free.tokens[3]}), max_tokens=8)).result()
    first = free.tokens.index(free.tokens[3])
    assert ended.stop_reason == "end"
    assert ended.tokens == free.tokens[: first + 1]


def test_stop_texts_end_an_answer_and_never_show(engine: Engine) -> None:
    free = engine.submit(ask(engine, "hello", max_tokens=24, temperature=1.0, seed=3)).result()
    stop = free.text[6:9]
    assert len(stop) == 3
    generation = engine.submit(ask(engine, "hello", max_tokens=24, temperature=1.0, seed=3, stop=(stop,)))
    streamed = "".join(chunk.text for chunk in generation)
    answer = generation.result()
    assert answer.stop_reason == "stop"
    assert streamed == answer.text == free.text[: free.text.find(stop)]


def test_streamed_chunks_are_the_answer(engine: Engine) -> None:
    generation = engine.submit(ask(engine, "hello", max_tokens=10, temperature=1.0, seed=5))
    chunks = list(generation)
    answer = generation.result()
    assert len(chunks) >= 10
    assert "".join(c.text for c in chunks) == answer.text
    assert tuple(t for c in chunks for t in c.tokens) == answer.tokens


def test_a_later_request_answers_before_an_earlier_long_one_ends(engine: Engine) -> None:
    long = engine.submit(ask(engine, "hello", max_tokens=400))
    stream = iter(long)
    next(stream)
    short = engine.submit(ask(engine, "y", max_tokens=2)).result()
    assert short.stop_reason == "length"
    assert engine.scheduler.running, "the long request must still be running"
    long.cancel()
    assert long.result().stop_reason == "cancelled"
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_requests_run_before_there_is_room_for_their_longest_answers_and_an_impossible_one_is_refused(
    engine: Engine,
) -> None:
    with pytest.raises(CapacityError, match="max_tokens=2000"):
        engine.submit(ask(engine, "hello", max_tokens=2000))
    with pytest.raises(ConfigError, match="no tokens"):
        engine.submit(Request(tokens=(), sampling=SampleConfig(), revision="base", end_ids=frozenset()))
    first, second = (engine.submit(ask(engine, "hello", max_tokens=600)) for _ in range(2))
    next(iter(second))
    assert not first.done
    for generation in (first, second):
        generation.cancel()
        assert generation.result().stop_reason == "cancelled"
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_calls_run_between_steps_and_their_errors_come_back(engine: Engine) -> None:
    long = engine.submit(ask(engine, "hello", max_tokens=300))
    assert engine.call(lambda model: model.bank.rows) == engine.model.bank.rows
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda model: 1 // 0)
    long.cancel()
    assert isinstance(long.result(), Completion)


def test_a_failing_step_fails_its_requests_and_the_loop_lives_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "logits", lambda *_: 1 / 0)
        generation = engine.submit(ask(engine, "hello"), on_end=ended.set)
        with pytest.raises(ZeroDivisionError):
            generation.result()
    assert ended.is_set()
    assert engine.submit(ask(engine, "hello", max_tokens=2)).result().stop_reason == "length"


def test_one_requests_fault_is_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    good = engine.submit(ask(engine, "hello", max_tokens=30))
    real = Sampler.take

    def broken(sampler: Sampler, drawn: list[float]) -> Choice:
        return real(sampler, drawn) if sampler.config.seed != 13 else Choice(1 // 0)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "take", broken)
        bad = engine.submit(ask(engine, "hello", max_tokens=30, seed=13), on_end=lambda: ended.append(1))
        with pytest.raises(ZeroDivisionError):
            bad.result()
        told = engine.submit(ask(engine, "hello", max_tokens=2), on_end=lambda: ended.append(1 // 0))
        with pytest.raises(ZeroDivisionError):
            told.result()
    assert good.result().stop_reason == "length"
    assert ended == [1]
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_a_fault_at_the_very_end_is_its_own_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import mintbook.engine.intake as module

    class Broken(module.Detokenizer):
        def finish(self) -> str:
            raise ZeroDivisionError

    good = engine.submit(ask(engine, "hello", max_tokens=60))
    next(iter(good))
    monkeypatch.setattr(module, "Detokenizer", Broken)
    with pytest.raises(ZeroDivisionError):
        engine.submit(ask(engine, "hello", max_tokens=2)).result()
    assert good.result().stop_reason == "length"
    assert engine.cache.free_tokens == engine.cache.capacity_tokens


def test_an_interrupted_caller_takes_its_work_with_it(engine: Engine) -> None:
    started, go, ran = threading.Event(), threading.Event(), []
    holder = threading.Thread(target=engine.call, args=(lambda model: (started.set(), go.wait(5)),))
    holder.start()
    started.wait(5)
    waiting = [f for _, f in engine._calls]
    assert waiting == []
    caller = threading.Thread(target=lambda: _swallow(lambda: engine.call(lambda model: ran.append(1))))
    caller.start()
    while not engine._calls:
        time.sleep(0.001)
    engine._calls[0][1].cancel()
    go.set()
    caller.join(5)
    holder.join(5)
    assert ran == []
    assert engine.call(lambda model: "alive") == "alive"


def _swallow(work: Callable[[], object]) -> None:
    with contextlib.suppress(BaseException):
        work()


def test_every_consumer_gets_the_answer(engine: Engine) -> None:
    generation = engine.submit(ask(engine, "hello", max_tokens=20))
    with ThreadPoolExecutor(3) as pool:
        answers = [f.result(timeout=20) for f in [pool.submit(generation.result) for _ in range(3)]]
    assert answers[0] == answers[1] == answers[2]


def test_time_that_only_generation_wanted_is_not_owed_to_calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    owed: list[tuple[bool, float]] = []
    settle = engine._settle

    def watched(seconds: float, *, called: bool, contested: bool) -> None:
        settle(seconds, called=called, contested=contested)
        owed.append((called, engine._owed_s))

    monkeypatch.setattr(engine, "_settle", watched)
    long = engine.submit(ask(engine, "hello", max_tokens=200))
    stream = iter(long)
    for _ in range(40):
        next(stream)
    engine.call(lambda model: time.sleep(0.05))
    long.cancel()
    long.result()
    at = [called for called, _ in owed].index(True)
    assert {seconds for _, seconds in owed[:at]} == {0.0}
    assert owed[at][1] < 0, "a call that shared the loop is paid back to the steps"


def test_closing_ends_what_waits(tiny_model: PackedModel, tiny_tokenizer: object) -> None:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=1024))
    generation = engine.submit(ask(engine, "hello", max_tokens=900))
    time.sleep(0.05)
    engine.close()
    with pytest.raises(MintbookError, match="closed"):
        generation.result()
    with pytest.raises(MintbookError, match="closed"):
        engine.call(lambda model: None)
