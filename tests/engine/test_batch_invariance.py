"""With ``batch_invariant`` no bit of an answer depends on what else is in the batch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from asking import adapters, ask
from mintbook_kernels.native import library
from tiny import load_tiny

from mintbook.config import EngineConfig
from mintbook.engine.engine import Engine
from mintbook.engine.request import Completion, Request
from mintbook.errors import ConfigError

Asked = tuple[Request, int]


def questions(slots: dict[str, int]) -> list[Asked]:
    """Prompts around the borders of blocks and chunks, greedy and drawn, of the base and of adapters."""
    asked = []
    for i, length in enumerate((1, 15, 16, 17, 63, 64, 65, 100, 129, 150)):
        who = list(slots)[i % len(slots)]
        tokens = [4 + (7 * i + 3 * at) % 250 for at in range(length)]
        drawn = {"temperature": 1.0, "seed": i} if i % 2 else {}
        asked.append((ask(tokens, who, max_tokens=6 + i, logprobs=True, **drawn), slots[who]))
    return asked


def bits(answer: Completion) -> tuple[object, ...]:
    return answer.tokens, answer.logprobs


@pytest.mark.skipif(not library.available(), reason=f"no compiled op: {library.why_missing()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answer_has_the_same_bits_alone_and_in_any_company(
    tiny_base_folder: Path, tiny_tokenizer: object, dtype: torch.dtype
) -> None:
    model = load_tiny(tiny_base_folder, dtype, batch_invariant=True)
    slots = adapters(model, 3, rank=3)
    asked = questions(slots)

    def answers(config: EngineConfig, order: list[int], *, together: bool) -> dict[int, tuple[object, ...]]:
        engine = Engine(model, tiny_tokenizer, config)
        try:
            if not together:
                return {i: bits(engine.submit(asked[i][0], slot=asked[i][1]).result(60)) for i in order}
            going = {i: engine.submit(asked[i][0], slot=asked[i][1]) for i in order}
            return {i: bits(generation.result(60)) for i, generation in going.items()}
        finally:
            engine.close()

    alone = answers(EngineConfig(batch_invariant=True, prefix_cache=False), list(range(len(asked))), together=False)
    for seed in range(4):
        dice = random.Random(seed)
        order = dice.sample(range(len(asked)), len(asked))
        config = EngineConfig(
            batch_invariant=True,
            prefill_tokens=dice.choice((16, 64, 100, 1024)),
            max_sequences=dice.choice((2, 5, 64)),
            kv_tokens=dice.choice((512, 4096)),
            prefix_cache=bool(seed % 2),
        )
        assert answers(config, order, together=True) == alone, config


def test_kernels_whose_bits_depend_on_the_batch_are_refused(
    tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINTBOOK_KERNELS", "torch")
    with pytest.raises(ConfigError, match=r"the kernels are torch \(.*\). Open the session without"):
        load_tiny(tiny_base_folder, torch.float32, batch_invariant=True)


def test_without_it_company_changes_bits_but_not_beyond_rounding(
    tiny_base_folder: Path, tiny_tokenizer: object
) -> None:
    model = load_tiny(tiny_base_folder, torch.float32)
    slots = adapters(model, 3, rank=3)
    asked = questions(slots)
    engine = Engine(model, tiny_tokenizer, EngineConfig())
    try:
        alone = [engine.submit(request, slot=slot).result(60) for request, slot in asked]
        together = [g.result(60) for g in [engine.submit(request, slot=slot) for request, slot in asked]]
    finally:
        engine.close()
    pairs = [(a.logprobs, b.logprobs) for a, b in zip(alone, together, strict=True)]
    assert any(a != b for a, b in pairs), "the test above proves nothing here: no company changes any bit"
    for a, b in pairs:
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)
