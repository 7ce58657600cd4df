"""Beginnings that are shared: by content of prompt and weights, never by name or slot, and only while there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from asking import adapters, alone, ask

from mintbook.config import EngineConfig, SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.prefix_cache import PrefixCache, prefix_digests
from mintbook.model.kv_cache import BLOCK, KVCache
from mintbook.model.packed_model import PackedModel
from mintbook.session import Session

LONG = "The same long beginning of all the questions that are asked here"


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: object) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=2048))
    yield engine
    engine.close()


def test_a_digest_names_a_block_with_all_before_it_and_the_weights() -> None:
    tokens = list(range(3 * BLOCK))
    digests = prefix_digests("base", tokens)
    assert len(digests) == 2, "one token stays to be computed"
    assert prefix_digests("base", [*tokens, 1])[:2] == digests
    assert prefix_digests("base", [1, *tokens[1:]])[1] != digests[1]
    assert not set(prefix_digests("other", tokens)) & set(digests)
    assert prefix_digests("", tokens) == ()


def test_the_longest_unused_goes_first_and_what_is_held_stays() -> None:
    cache = KVCache(8 * BLOCK, torch.device("cpu"))
    prefixes = PrefixCache(cache)
    tables = [cache.allocate(2 * BLOCK) for _ in range(3)]
    kinds = [[bytes([kind, n]) for n in range(2)] for kind in range(3)]
    for digests, table in zip(kinds, tables, strict=True):
        prefixes.keep(digests, table.blocks)
    assert prefixes.unreferenced == 0
    prefixes.make_room(8)
    assert len(prefixes) == 6, "all of them are in use"
    cache.release(tables[0])
    cache.release(tables[1])
    assert prefixes.find(kinds[0]) == tables[0].blocks
    prefixes.make_room(3)
    assert prefixes.find(kinds[1]) == tables[1].blocks[:1], "the end of the longest unused went first"
    prefixes.make_room(8)
    assert len(prefixes) == 2
    assert prefixes.find(kinds[2]) == tables[2].blocks
    cache.release(tables[2])
    prefixes.make_room(8)
    assert cache.free_blocks == 8


def test_prompts_that_begin_alike_are_read_once(engine: Engine) -> None:
    asks = [(ask(LONG + end, max_tokens=8), -1) for end in ("one", "two", "three", "two")]
    engine.submit(asks[0][0]).result(60)
    read = engine.counters().tokens_read
    answers = [engine.submit(request).result(60) for request, _ in asks]
    counters = engine.counters()
    whole = len(LONG) // BLOCK * BLOCK
    assert counters.tokens_from_prefixes == 4 * whole
    assert counters.tokens_read - read == sum(len(request.tokens) - whole for request, _ in asks)
    assert answers == alone(engine.model, engine.tokenizer, asks)
    assert counters.kv_tokens_used == counters.kv_tokens_kept == whole


def test_samples_of_one_prompt_that_come_together_read_it_once(engine: Engine) -> None:
    requests = [ask(LONG * 4, max_tokens=4, temperature=1.0, seed=seed) for seed in range(8)]
    running = [engine.submit(request) for request in requests]
    answers = [generation.result(60) for generation in running]
    assert len({answer.tokens for answer in answers}) > 4
    tokens = len(LONG) * 4
    whole = (tokens - 1) // BLOCK * BLOCK
    assert engine.counters().tokens_read == whole + 8 * (tokens - whole)


def test_what_is_shared_takes_room_once(engine: Engine) -> None:
    running = [engine.submit(ask(LONG * 4, max_tokens=200, seed=seed)) for seed in range(8)]
    for generation in running:
        next(iter(generation))
    assert engine.counters().kv_tokens_used < 2 * len(LONG) * 4 + 8 * 200
    for generation in running:
        generation.cancel()
        generation.result(60)
    assert engine.counters().kv_tokens_used == engine.counters().kv_tokens_kept


def test_who_waits_for_a_reader_goes_on_alone_when_that_one_is_cancelled(
    tiny_model: PackedModel, tiny_tokenizer: object
) -> None:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=2048, prefill_tokens=16))
    try:
        requests = [ask(LONG * 4, max_tokens=4, seed=seed) for seed in range(3)]
        running = [engine.submit(request) for request in requests]
        running[0].cancel()
        answers = [generation.result(60) for generation in running[1:]]
        assert answers == alone(tiny_model, tiny_tokenizer, [(requests[1], -1)]) * 2
    finally:
        engine.close()


def test_nothing_is_shared_across_weights_or_by_who_asks_for_nothing(engine: Engine) -> None:
    slots = adapters(engine.model, 2)
    asks = [(ask(LONG, who, max_tokens=6), slot) for who, slot in slots.items()]
    answers = [engine.submit(request, slot=slot).result(60) for request, slot in asks]
    assert engine.counters().tokens_from_prefixes == 0
    assert len({answer.tokens for answer in answers}) == 3
    private = ask(LONG, "base", max_tokens=6)
    object.__setattr__(private, "cache_key", "")
    for _ in range(2):
        assert engine.submit(private).result(60) == answers[0]
    assert engine.counters().tokens_from_prefixes == 0


def test_a_slot_that_others_had_before_answers_from_its_own_weights(engine: Engine) -> None:
    slots = adapters(engine.model, 2)
    before = engine.submit(ask(LONG, "adapter0", max_tokens=6), slot=slots["adapter0"]).result(60)
    engine.call(lambda model: model.bank.free(slots["adapter0"]))
    again = adapters(engine.model, 1)
    assert again["adapter0"] == slots["adapter0"]
    engine.call(lambda model: model.bank.tensor.mul_(0.5))
    changed = ask(LONG, "adapter0 halved", max_tokens=6)
    answer = engine.submit(changed, slot=again["adapter0"]).result(60)
    assert answer == alone(engine.model, engine.tokenizer, [(changed, again["adapter0"])])[0]
    assert answer.tokens != before.tokens
    assert engine.counters().tokens_from_prefixes == 0


def test_a_name_that_comes_to_mean_something_else_is_never_answered_from_what_was_read_before(
    open_session: Callable[..., Session], tmp_path: Path
) -> None:
    facts = [(LONG + str(n), str(n * n)) for n in range(6)]
    options = {"steps": 6, "batch_size": 4, "anchor": 0.0, "learning_rate": 0.05}
    session = open_session()
    alice = session.adapter("alice", rank=4)

    def answers() -> tuple[str, str, int]:
        before = session.engine.counters().tokens_from_prefixes
        found = [alice.generate(LONG + "3", max_tokens=8).text for _ in range(2)]
        return found[0], found[1], session.engine.counters().tokens_from_prefixes - before

    alice.train(facts, **options)
    first = answers()
    alice.train([(question, "No.") for question, _ in facts], **options)
    second = answers()
    assert first[0] == first[1] != second[0] == second[1]
    assert first[2] == second[2] > 0, "only its second question found what its first had read"
    alice.export(tmp_path / "exported", at="@1")
    bob = session.import_peft("bob", tmp_path / "exported")
    before = session.engine.counters().tokens_from_prefixes
    assert bob.generate(LONG + "3", max_tokens=8).text == first[0]
    same = bob.head is not None and bob.head.weights_digest == alice.revision("@1").weights_digest
    assert (session.engine.counters().tokens_from_prefixes > before) is same
    session.close()
    other = open_session(store=tmp_path / "other", prefix_cache=False)
    other.import_peft("alice", tmp_path / "exported")
    assert other.adapter("alice").generate(LONG + "3", max_tokens=8).text == first[0]


def test_a_prompt_as_large_as_the_cache_finds_room_beside_its_own_beginning(
    tiny_model: PackedModel, tiny_tokenizer: object
) -> None:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=128))
    try:
        requests = [ask("a" * 100 + end, max_tokens=20) for end in ("b", "c")]
        answers = [engine.submit(request).result(60) for request in requests]
        assert engine.counters().tokens_from_prefixes == 96
        assert answers == alone(tiny_model, tiny_tokenizer, [(request, -1) for request in requests])
    finally:
        engine.close()


def test_a_prompt_that_is_scored_is_read_whole(engine: Engine) -> None:
    plain, scored = ask(LONG, max_tokens=2), ask(LONG, max_tokens=2, prompt_logprobs=True)
    engine.submit(plain).result(60)
    assert isinstance(scored.sampling, SampleConfig)
    answer = engine.submit(scored).result(60)
    assert engine.counters().tokens_from_prefixes == 0
    assert answer == alone(engine.model, engine.tokenizer, [(scored, -1)])[0]
