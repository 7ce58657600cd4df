"""``mintbook bench prefill``: what reading prompts costs with many adapters, over the base's and beside the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from mintbook.bench.adapters import in_slots
from mintbook.bench.batch import Batch, Side
from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.contest import Case, Contest, Entry, Times, rows_of
from mintbook.bench.engine_side import EngineSide
from mintbook.bench.setting import Setting
from mintbook.bench.sides import Sides, open_sides
from mintbook.bench.timing import wall_ratio

RANK = 8
SERVED = 32
SHAPES = ((32, 32, 32), (8, 128, 8))
"""Prompts, tokens of each, distinct adapters: 1,024 tokens, which one step reads."""
SAID = 3
"""Tokens after the first, outside the measured time: one token is too little to know an adapter by."""


class Prefill:
    """The benchmark of reading prompts."""

    name = "prefill"
    targets: ClassVar[dict[str, Target]] = {
        "over_base_32x32x32": Target(1.15),
        "over_base_8x128x8": Target(1.15),
    }

    def protocol(self, setting: Setting) -> str:
        """Return how it measures."""
        rounds, checked = _effort(setting)
        return (
            f"{'quick' if setting.quick else 'full'}; prefill, {setting.dtype}, {setting.threads} threads; random "
            f"rank-{RANK} adapters on all linear layers, B non-zero; from the submission of all prompts until every "
            f"one has its first token; {rounds} interleaved rounds, medians of the ratios within a round; BxTxN: B "
            "prompts of T random tokens for N adapters; over_base: our time with adapters ÷ without; over_generate, "
            f"over_peft, over_vllm: their time ÷ ours; up to {checked} rows of every answer held against fp32 "
            "transformers, one by one."
        )

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Measure all sides in the same rounds and return rows and ratios."""
        rounds, checked = _effort(setting)
        room = {"slot_rows": RANK * SERVED, "kv_tokens": 4096, "max_sequences": SERVED, "prefill_tokens": 1024}
        longest = max(length for _, length, _ in SHAPES) + 8
        with (
            open_sides(setting, ranks=[RANK] * SERVED, served=SERVED, longest=longest, room=room, say=say) as sides,
            in_slots(sides.engine, sides.pages) as slots,
        ):
            contest = Contest("prefill", sides.reference, rounds=rounds, checked=checked, say=say)
            engine = EngineSide(sides.engine, slots)
            engine.check_base_rows(Batch.random(8, 32, adapters=range(8), steps=3, vocabulary=sides.vocabulary))
            times = contest.hold(dict(_entries(sides, engine)))
            rows = [*rows_of(times, lambda case: case.batch * case.length, "prefill"), *contest.rows()]
            return Findings(rows, _ratios(times), sides.skipped, sides.versions)


def _effort(setting: Setting) -> tuple[int, int]:
    return (3, 4) if setting.quick else (11, 8)


def _case(batch: int, length: int, distinct: int) -> Case:
    return Case(batch, length, distinct, f"{length} tokens each")


def _entries(sides: Sides, engine: EngineSide) -> Iterator[tuple[Entry, tuple[Side, Batch]]]:
    serving: dict[str, Side] = {engine.name: engine, **sides.peers}
    for batch, length, distinct in SHAPES:
        for side in serving.values():
            for count in (0, distinct):
                if not _takes_part(side.name, count):
                    continue
                asked = Batch.random(batch, length, adapters=range(count), steps=SAID, vocabulary=sides.vocabulary)
                yield Entry(_case(batch, length, count), side.name), (side, asked)


def _takes_part(side: str, adapters: int) -> bool:
    if side in ("transformers", "vllm without LoRA"):
        return not adapters
    return side == EngineSide.name or bool(adapters)


def _ratios(times: Times) -> dict[str, float]:
    found = {}
    for batch, length, distinct in SHAPES:
        mixed, base = _case(batch, length, distinct), _case(batch, length, 0)
        own, own_base = times[Entry(mixed, EngineSide.name)], times[Entry(base, EngineSide.name)]
        name = f"{batch}x{length}x{distinct}"
        found[f"over_base_{name}"] = wall_ratio(own, own_base)
        rivals = {
            f"over_generate_{batch}x{length}": (Entry(base, "transformers"), own_base),
            f"over_peft_{name}": (Entry(mixed, "peft"), own),
            f"over_vllm_{name}": (Entry(mixed, "vllm"), own),
            f"over_vllm_base_{batch}x{length}": (Entry(base, "vllm without LoRA"), own_base),
        }
        found |= {key: wall_ratio(times[entry], ours) for key, (entry, ours) in rivals.items() if entry in times}
    return found
