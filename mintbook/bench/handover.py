"""``mintbook bench handoff``: from trainer to server by the adapter alone, or by merging and reloading the model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch

from mintbook.bench.batch import Answer, Batch
from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.engine_side import EngineSide
from mintbook.bench.reference import Claim, Reference
from mintbook.bench.row import EVERY, Row
from mintbook.bench.setting import Setting
from mintbook.bench.stock import Stock, empty_slots, fill, load_bench_base, open_resident, temporary_folder
from mintbook.bench.transformers_side import load_plain
from mintbook.errors import MintbookError
from mintbook.model.base import Base
from mintbook.model.fidelity import check_fidelity
from mintbook.model.sites import linear_sites
from mintbook.resident import Resident
from mintbook.store.page import Page
from mintbook.store.store import Store

RANK = 8
LENGTH = 24
ROOM = {"slot_rows": 16, "prefix_cache": False}
SLOT, STORE, MERGED = "adapter, in its slot", "adapter, from the store", "merged and reloaded"


@dataclass(frozen=True, slots=True)
class Handover:
    """One way from trained weights to answers: what was moved, in which steps, and how the server then answers."""

    bytes_moved: int
    seconds: dict[str, float]
    """Of each step until the server has the weights."""
    answer: Answer

    @property
    def ready_s(self) -> float:
        """Seconds until the server has the weights."""
        return sum(self.seconds.values())

    @property
    def first_s(self) -> float:
        """Seconds from then to the first token of the first answer."""
        return self.answer.prefill.wall_s


Ways = dict[str, list[Handover]]


def break_even(adapter: tuple[float, float], merged: tuple[float, float]) -> float | None:
    """Return after how many tokens merging has paid off, or ``None`` where its tokens are no faster.

    Each side is (seconds until its first token, seconds per token after that): ``n = (m₀ - a₀) / (a₁ - m₁)``.

    >>> break_even((1.0, 0.2), (11.0, 0.1)), break_even((1.0, 0.1), (11.0, 0.1))
    (100.0, None)
    """
    gain = adapter[1] - merged[1]
    return round(max(0.0, merged[0] - adapter[0]) / gain, 6) if gain > 0 else None


class Handoff:
    """The benchmark of the way from trainer to server."""

    name = "handoff"
    targets: ClassVar[dict[str, Target]] = {}

    def protocol(self, setting: Setting) -> str:
        """Return how it measures."""
        rounds, steps = _effort(setting)
        return (
            f"{'quick' if setting.quick else 'full'}; handoff, {setting.dtype}, {setting.threads} threads; one random "
            f"rank-{RANK} adapter on all linear layers; in its slot: the run's own slot becomes the revision's home, "
            "without a copy; from the store: its file read into a slot, as another server would; merged: W + s·BA "
            "over a copy of the base in memory, saved, and loaded by transformers (from the page cache, its checks "
            "and the engine's opening not counted); first sample: from the ask to the first token after a prompt of "
            f"{LENGTH} random tokens, merged in an engine that is new; warm: {steps} steps of one request; {rounds} "
            "rounds, medians; break-even: tokens of one answer after which merging has paid off, over the adapter in "
            "its slot; all answers held against fp32 transformers."
        )

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Hand one adapter over in every way, check the answers, and return rows and ratios."""
        rounds, steps = _effort(setting)
        say("opening the base")
        base = load_bench_base(setting)
        vocabulary = int(base.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        batch = Batch.random(1, LENGTH, adapters=[0], steps=steps, vocabulary=vocabulary)
        ways: Ways = {SLOT: [], STORE: [], MERGED: []}
        with (
            temporary_folder() as folder,
            Store.open(folder / "store") as store,
            open_resident(setting, base, ROOM) as resident,
        ):
            stock = fill(store, base, linear_sites(base.model), [RANK], say)
            page = store.page(stock.revisions[0])
            EngineSide(resident.engine).answer(replace(batch, adapters=(None,)))  # a server that has run for a while
            for number in range(rounds):
                say(f"round {number + 1} of {rounds}")
                ways[SLOT].append(_adopted(resident, stock, page, batch))
                ways[STORE].append(_loaded(resident, stock, batch))
                ways[MERGED].append(_merged(setting, base, page, batch, folder / "merged"))
        claims = [
            Claim(way, batch.prompts[0], handover.answer.tokens[0][:8], 0)
            for way, found in ways.items()
            for handover in found
        ]
        gap = Reference(base.folder, [page], setting.dtype).check(claims, say)
        rows = _rows(ways)
        rows.append(Row(EVERY, EVERY, "answers held against the reference", len(claims), "answers"))
        rows.append(Row(EVERY, EVERY, "largest gap to the reference", gap, "nats"))
        tokens = _break_even(ways)
        if tokens is not None:
            rows.append(Row("break-even", MERGED, "break-even", tokens, "tokens"))
            return Findings(rows, _ratios(ways) | {"break_even_tokens": tokens})
        return Findings(rows, _ratios(ways), {"break-even": "merged weights answer no faster here: merging never pays"})


def _effort(setting: Setting) -> tuple[int, int]:
    return (2, 24) if setting.quick else (5, 64)


def _adopted(resident: Resident, stock: Stock, page: Page, batch: Batch) -> Handover:
    """Hand over as a training does that has just committed its slot."""
    residency, revision = empty_slots(resident), stock.revisions[0]
    slot = residency.place(page)
    began = time.perf_counter()
    residency.adopt(revision, slot)
    took = time.perf_counter() - began
    with residency.lease(revision, stock.store) as found:
        answer = EngineSide(resident.engine, [found]).answer(batch)
    if found != slot or residency.counters().loads:
        raise MintbookError("The adapter was copied on its way to the server. No row was written; please report this.")
    return Handover(0, {"adopt": took}, answer)


def _loaded(resident: Resident, stock: Stock, batch: Batch) -> Handover:
    residency, revision = empty_slots(resident), stock.revisions[0]
    began = time.perf_counter()
    with residency.lease(revision, stock.store) as slot:
        took = time.perf_counter() - began
        answer = EngineSide(resident.engine, [slot]).answer(batch)
    return Handover(stock.file(revision).stat().st_size, {"load": took}, answer)


def _merged(setting: Setting, base: Base, page: Page, batch: Batch, folder: Path) -> Handover:
    plain = load_plain(base.folder, setting.dtype).requires_grad_(False)
    marks = [time.perf_counter()]
    whole = merge(plain, page)
    marks.append(time.perf_counter())
    whole.save_pretrained(folder)
    marks.append(time.perf_counter())
    loaded = load_plain(folder, setting.dtype).requires_grad_(False)
    marks.append(time.perf_counter())
    moved = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    shutil.rmtree(folder)
    check_fidelity(loaded, loaded.config.vocab_size)  # it also gives the model the attention of packed batches
    with open_resident(setting, replace(base, model=loaded), ROOM) as resident:
        answer = EngineSide(resident.engine).answer(replace(batch, adapters=(None,)))
    steps = zip(("merge", "save", "load"), marks, marks[1:], strict=False)
    return Handover(moved, {name: after - before for name, before, after in steps}, answer)


@torch.no_grad()
def merge(model: Any, page: Page) -> Any:
    """Return a copy of a model whose weights are ``W + s · B A``, rounded to its precision."""
    merged = deepcopy(model)
    scales = dict(zip((site.name for site in page.sites), page.scales, strict=True))
    for name, (a, bt) in page.factors().items():
        weight = merged.get_submodule(name).weight
        weight.copy_(weight.float() + scales[name] * (bt.float().T @ a.float()))
    return merged


def _of(ways: Ways, way: str, number: Callable[[Handover], float]) -> float:
    return median(number(handover) for handover in ways[way])


def _first_s(handover: Handover) -> float:
    return handover.first_s


def _token_s(handover: Handover) -> float:
    return handover.answer.step.wall_s


def _ready_s(handover: Handover) -> float:
    return handover.ready_s


def _break_even(ways: Ways) -> float | None:
    sides = [(_of(ways, way, _ready_s) + _of(ways, way, _first_s), _of(ways, way, _token_s)) for way in (SLOT, MERGED)]
    return break_even(*sides)


def _rows(ways: Ways) -> list[Row]:
    rows = []
    for way, found in ways.items():
        numbers: Sequence[tuple[str, float, str]] = [
            ("moved", found[0].bytes_moved, "bytes"),
            *((step, median(one.seconds[step] for one in found) * 1e3, "ms") for step in found[0].seconds),
            ("until it can answer", _of(ways, way, _ready_s) * 1e3, "ms"),
            ("first sample", _of(ways, way, _first_s) * 1e3, "ms"),
            ("speed", 1 / _of(ways, way, _token_s), "tokens/s"),
        ]
        rows += [Row("handoff", way, metric, value, unit) for metric, value, unit in numbers]
    return rows


def _ratios(ways: Ways) -> dict[str, float]:
    def over(number: Callable[[Handover], float], way: str) -> float:
        return _of(ways, MERGED, number) / _of(ways, way, number)

    return {
        "merged_bytes_over_adapter": ways[MERGED][0].bytes_moved / ways[STORE][0].bytes_moved,
        "merged_ready_s_over_slot": over(_ready_s, SLOT),
        "merged_ready_s_over_store": over(_ready_s, STORE),
        "merged_first_s_over_slot": over(_first_s, SLOT),
        "merged_per_s_over_slot": 1 / over(_token_s, SLOT),
    }
