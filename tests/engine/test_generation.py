"""Streams: for threads and for event loops, several at once, left early, and always with an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from asking import ask

from mintbook.config import EngineConfig
from mintbook.engine.engine import Engine
from mintbook.engine.generation import Generation
from mintbook.engine.request import Chunk, Completion
from mintbook.model.packed_model import PackedModel
from mintbook.session import Session

ANSWER = Completion(
    text="ab", tokens=(1, 2), logprobs=None, revision="base", digest="", stop_reason="length", prompt_tokens=1
)


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: object) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=1024))
    yield engine
    engine.close()


def test_every_consumer_gets_every_chunk_whether_it_waits_in_a_thread_or_awaits(engine: Engine) -> None:
    generation = engine.submit(ask("hello", max_tokens=30, logprobs=True))

    async def read() -> tuple[list[Chunk], list[Chunk], Completion]:
        async def one() -> list[Chunk]:
            return [chunk async for chunk in generation]

        first, second, answer = await asyncio.gather(one(), one(), _await(generation))
        return first, second, answer

    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(list, generation) for _ in range(2)]
        first, second, answer = asyncio.run(asyncio.wait_for(read(), 30))
        streams = [first, second, list(generation), *(thread.result(30) for thread in threads)]
    assert answer == generation.result(0)
    for chunks in streams:
        assert chunks == first
    assert tuple(token for chunk in first for token in chunk.tokens) == answer.tokens
    assert tuple(number for chunk in first for number in chunk.logprobs or ()) == answer.logprobs


async def _await(generation: Generation) -> Completion:
    return await generation


def test_leaving_an_async_stream_early_cancels_and_a_plain_one_does_not(engine: Engine) -> None:
    async def leave(generation: Generation) -> None:
        async for _ in generation:
            break

    left = engine.submit(ask("hello", max_tokens=900))
    asyncio.run(leave(left))
    assert left.result(30).stop_reason == "cancelled"
    kept = engine.submit(ask("hello", max_tokens=40))
    for _ in kept:
        break
    assert kept.result(30).stop_reason == "length"


def test_cancelling_who_awaits_cancels_the_request(engine: Engine) -> None:
    async def give_up(generation: Generation) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(generation), 0.05)

    generation = engine.submit(ask("hello", max_tokens=900))
    asyncio.run(give_up(generation))
    assert generation.result(30).stop_reason == "cancelled"
    assert engine.cache.free_tokens + engine.counters().kv_tokens_kept == engine.cache.capacity_tokens


def test_a_result_that_takes_too_long_is_said_so_and_goes_on(engine: Engine) -> None:
    generation = engine.submit(ask("hello", max_tokens=500))
    with pytest.raises(TimeoutError, match="goes on"):
        generation.result(0.01)
    assert not generation.cancelled
    assert not generation.done
    generation.cancel()
    generation.cancel()
    assert generation.result(30).stop_reason == "cancelled"
    generation.cancel()


def test_an_error_reaches_everybody_and_the_end_is_told_after_on_end() -> None:
    told = []
    generation = Generation(ask("x"), on_end=lambda: told.append(generation.done))
    generation.put(Chunk("a", (1,)))
    reader = threading.Thread(target=lambda: told.append(generation.wait(30)))
    reader.start()
    generation.end(ValueError("broken"))
    reader.join(30)
    assert told == [False, True]
    stream = iter(generation)
    assert next(stream).text == "a"
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    with pytest.raises(ValueError, match="broken"):
        generation.result()
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(_await(generation))


def test_a_loop_that_was_closed_does_not_stop_the_others() -> None:
    generation = Generation(ask("x"))
    loop = asyncio.new_event_loop()
    task = loop.create_task(_await(generation))
    loop.run_until_complete(asyncio.sleep(0))
    loop.stop()
    loop.close()
    generation.end(ANSWER)
    assert generation.result(1) == ANSWER
    task.get_coro().close()


def test_a_request_in_the_middle_of_anothers_decoding_speaks_before_that_ends(
    open_session: Callable[..., Session],
) -> None:
    session = open_session()
    session.adapter("alice", rank=4).train([("a", "b")] * 4, steps=2, batch_size=2, anchor=0.0)
    alice = session.adapter("alice")
    long = alice.stream("Tell me everything.", max_tokens=300)
    stream = iter(long)
    next(stream)

    async def first() -> Chunk:
        late = alice.stream("And me?", max_tokens=300)
        async for chunk in late:
            return chunk
        raise AssertionError

    assert asyncio.run(first()).tokens
    assert not long.done
    long.cancel()
    assert long.result(30).stop_reason == "cancelled"
