"""Residency: one load however many ask, leases that hold, the longest unused first, and no quiet wrong answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pytest
import torch
from loading_place import Place

from mintbook.config import SampleConfig
from mintbook.engine.request import Request
from mintbook.errors import AdapterError, BaseMismatch, CapacityError, ConfigError, CorruptStore, TargetError
from mintbook.model.batch import NO_ADAPTER
from mintbook.store.page import Page, Site
from mintbook.store.revisions import Revision

PROBE = (3, 5, 7, 11)


def touch(place: Place, revision: Revision) -> int:
    with place.residency.lease(revision, place.store) as slot:
        return slot


def hot(place: Place) -> list[str]:
    return [r.revision for r in place.residency.residents() if r.state == "hot"]


def answer(place: Place, slot: int) -> torch.Tensor:
    return place.engine.logits([PROBE], [slot], start=[0])[0]


def test_a_hundred_asks_for_one_missing_revision_make_one_load(place: Place) -> None:
    revision = place.commit("a")
    with place.gated_reads() as let_go:
        leases = [place.residency.lease(revision, place.store) for _ in range(50)]
        with ThreadPoolExecutor(50) as pool:
            slots = [pool.submit(touch, place, revision) for _ in range(50)]
            let_go(1)
            assert len({s.result() for s in slots} | {lease.result() for lease in leases}) == 1
    assert place.reads == ["a@1"]
    counters = place.residency.counters()
    assert (counters.loads, counters.store_reads, counters.refusals) == (1, 1, 0)
    assert counters.joined + counters.slot_hits == 99


def test_one_in_flight_and_one_in_line_load_two_of_a_burst_of_four(open_place: Callable[..., Place]) -> None:
    place = open_place(loads_in_flight=1, load_queue=1)
    revisions = [place.commit(name) for name in "abcd"]
    with place.gated_reads() as let_go:
        taken, refused = [], []
        for revision in revisions:
            try:
                taken.append(place.residency.lease(revision, place.store))
            except CapacityError as error:
                refused.append(error)
        assert (place.residency.counters().loads_in_flight, place.residency.counters().loads_queued) == (1, 1)
        let_go(2)
        assert len({lease.result() for lease in taken}) == 2
    assert (len(taken), len(refused)) == (2, 2)
    assert all(0 < error.retry_after_s < 10 for error in refused)
    counters = place.residency.counters()
    assert (counters.loads, counters.refusals, counters.loads_in_flight) == (2, 2, 0)
    assert place.residency.lease(revisions[3], place.store).result() >= 0


def test_a_lease_holds_and_the_longest_unused_goes_first(place: Place) -> None:
    revisions = [place.commit(name) for name in "abcdef"]
    held = place.residency.lease(revisions[0], place.store)
    slot = held.result()
    for revision in (*revisions[1:4], revisions[1], revisions[4]):
        touch(place, revision)
    assert sorted(hot(place)) == ["a@1", "b@1", "d@1", "e@1"]
    for revision in revisions[1:] * 3:
        touch(place, revision)
        assert touch(place, revisions[0]) == slot
    assert place.residency.counters().evictions > 10


def test_a_stale_slot_is_never_answered_from(place: Place) -> None:
    """A slot whose tenant changed answers as the new one, and the old one comes back as itself."""
    revisions = [place.commit(name) for name in "abcde"]
    alone = {}
    for revision in revisions:
        with place.residency.lease(revision, place.store) as slot:
            alone[revision.reference] = answer(place, slot)
    assert len({float(row.sum()) for row in alone.values()}) == 5
    for revision in [*revisions, *reversed(revisions), *revisions]:
        with place.residency.lease(revision, place.store) as slot:
            assert torch.equal(answer(place, slot), alone[revision.reference])


def test_when_all_are_leased_the_next_is_refused_at_once_and_nothing_is_lost(place: Place) -> None:
    revisions = [place.commit(name) for name in "abcdef"]
    leases = [place.residency.lease(revision, place.store) for revision in revisions[:4]]
    with pytest.raises(CapacityError, match="slot_rows"):
        place.residency.lease(revisions[4], place.store)
    with pytest.raises(CapacityError, match="slot_rows"):
        place.residency.place(place.page(1))
    [lease.result() for lease in leases]
    leases[2].end()
    leases[2].end()
    fifth = place.residency.lease(revisions[4], place.store)
    with pytest.raises(CapacityError):
        place.residency.lease(revisions[2], place.store)
    assert fifth.result() >= 0
    for lease in [*leases, fifth]:
        lease.end()
    assert place.residency.counters().leased == 0
    assert len({touch(place, revision) for revision in revisions}) <= 4


def test_rows_that_a_load_was_promised_are_not_taken_back(place: Place) -> None:
    revisions = [place.commit(name) for name in "abcde"]
    for revision in revisions[:4]:
        touch(place, revision)
    held = [place.residency.lease(revision, place.store) for revision in revisions[1:4]]
    with place.gated_reads() as let_go:
        cold = place.residency.lease(revisions[4], place.store)
        with pytest.raises(CapacityError):
            place.residency.lease(revisions[0], place.store)
        let_go(1)
        assert cold.result() >= 0
    assert len(held) == 3


def test_a_broken_file_in_a_wave_harms_nobody_else_and_can_be_retried(place: Place) -> None:
    revisions = [place.commit(name) for name in "abc"]
    place.break_file(revisions[1])
    with place.gated_reads() as let_go:
        leases = [place.residency.lease(r, place.store) for r in (*revisions, revisions[1])]
        let_go(3)
        assert leases[0].result() != leases[2].result()
        for lease in (leases[1], leases[3]):
            with pytest.raises(CorruptStore, match="b@1"):
                lease.result()
            lease.end()
    counters = place.residency.counters()
    assert (counters.failed_loads, counters.loads, counters.hot, counters.leased) == (1, 2, 2, 2)
    place.break_file(revisions[1])
    assert touch(place, revisions[1]) not in (leases[0].result(), leases[2].result())
    leases[0].end()
    leases[2].end()
    place.engine.call(lambda model: None)
    assert place.bank.free_rows == 64 - 48


def test_an_adapter_that_matches_nothing_or_has_no_rank_is_an_error(place: Place) -> None:
    page = place.page(4)
    elsewhere = tuple(Site(f"other.{site.name}", site.in_features, site.out_features) for site in page.sites)
    stranger = place.commit("stranger", Page(page.tensor, elsewhere, page.ranks, page.scales))
    with pytest.raises(TargetError, match="this base lacks"):
        place.residency.lease(stranger, place.store).result()
    count = len(page.sites)
    empty = place.commit("empty", Page(page.tensor[:0], page.sites, (0,) * count, page.scales))
    with pytest.raises(AdapterError, match="empty@1 has rank 0"):
        place.residency.lease(empty, place.store)
    other = place.commit("narrow", place.page(4, targets="q_proj"))
    lying = place.commit("lying", place.page(4), targets=other.manifest.targets)
    with pytest.raises(CorruptStore, match="targets"):
        place.residency.lease(lying, place.store).result()
    assert place.bank.free_rows == 64


def test_padding_rows_and_sites_of_rank_zero_never_answer(place: Place) -> None:
    full = place.page(8)
    ranks = tuple((0, 3, 8)[i % 3] for i in range(len(full.sites)))
    padded = Page(full.tensor.clone(), full.sites, ranks, full.scales)
    clean = Page(torch.zeros_like(full.tensor), full.sites, ranks, full.scales)
    for name, pair in padded.factors().items():
        for part, copy in zip(pair, clean.factors()[name], strict=True):
            copy.copy_(part)
    assert not torch.equal(padded.tensor, clean.tensor)
    with (
        place.residency.lease(place.commit("padded", padded), place.store) as a,
        place.residency.lease(place.commit("clean", clean), place.store) as b,
    ):
        one, other, base = place.engine.logits([PROBE] * 3, [a, b, NO_ADAPTER], start=[0] * 3)
    assert torch.equal(one, other)
    assert not torch.equal(one, base)


def test_the_same_name_with_new_weights_answers_as_the_new_ones(place: Place) -> None:
    first, second = place.commit("a", place.page(seed=1)), place.commit("a", place.page(seed=2))
    with place.residency.lease(first, place.store) as one, place.residency.lease(second, place.store) as two:
        assert one != two
        assert not torch.equal(answer(place, one), answer(place, two))
    same = place.commit("b", place.page(seed=2))
    assert touch(place, same) == two, "equal content has one slot, whatever its name"


def test_an_interrupted_caller_leaves_no_lease(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first, queued = place.commit("a"), place.commit("b")
    place.residency._loader.in_flight = 1
    with place.gated_reads() as let_go:
        leases = [place.residency.lease(revision, place.store) for revision in (first, queued)]
        place.reading.acquire(timeout=20)
        for lease in leases:
            with monkeypatch.context() as patch:
                patch.setattr(lease.slot, "result", lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
                with pytest.raises(KeyboardInterrupt):
                    lease.result()
        assert [lease.slot.cancelled() for lease in leases] == [True, True]
        let_go(1)
        while place.residency.counters().loads_in_flight:
            pass
    counters = place.residency.counters()
    assert (counters.loads, counters.leased, counters.hot) == (1, 0, 1), "what had begun is loaded, and the rest is not"
    assert place.reads == ["a@1"]
    revisions = [place.commit(name) for name in "cdef"]
    assert len({lease.result() for lease in [place.residency.lease(r, place.store) for r in revisions]}) == 4


def test_an_interrupted_run_leaves_no_slot_of_its_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    call = place.engine.call

    def interrupted(work: Callable[..., object]) -> object:
        call(work)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(place.engine, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.residency.place(place.page())
    assert place.bank.free_rows == 64
    slots = [place.residency.place(place.page()) for _ in range(4)]
    for slot in slots:
        place.residency.discard(slot)
        place.residency.discard(slot)
    assert place.bank.free_rows == 64
    assert place.residency._room.promised == 0


def test_what_a_run_made_is_hot_at_once_without_a_copy(place: Place) -> None:
    page = place.page(seed=9)
    slot = place.residency.place(page)
    revision = place.commit("a", page)
    place.residency.adopt(revision, slot)
    assert touch(place, revision) == slot
    assert (place.residency.counters().loads, place.residency.counters().slot_hits) == (0, 1)
    again = place.residency.place(page)
    place.residency.adopt(place.commit("b", page), again)
    assert place.bank.free_rows == 48
    place.residency.discard(slot)
    assert touch(place, revision) == slot


def test_memory_returns_to_its_bounds(open_place: Callable[..., Place]) -> None:
    size = open_place().page().tensor.nbytes
    place = open_place(host_cache_bytes=3 * size)
    revisions = [place.commit(f"r{i}", place.page(seed=i)) for i in range(12)]
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda revision: touch(place, revision), revisions))
    counters = place.residency.counters()
    assert (counters.hot, counters.warm) == (4, 3)
    assert counters.slot_bytes == 4 * size
    assert counters.host_bytes == 3 * size
    assert counters.host_evictions > 0
    assert threading.active_count() < 20
    for revision in revisions[-2:]:
        touch(place, revision)
    before = place.residency.counters()
    for revision in revisions[:4]:
        touch(place, revision)
    touch(place, revisions[-1])
    assert place.residency.counters().host_hits > before.host_hits or before.slot_hits > 0


def test_the_host_cache_spares_the_store(open_place: Callable[..., Place]) -> None:
    place = open_place()
    revisions = [place.commit(name) for name in "abcdefgh"]
    for revision in revisions * 3:
        touch(place, revision)
    counters = place.residency.counters()
    assert (counters.store_reads, counters.host_hits, counters.loads) == (8, 16, 24)
    nothing = open_place(host_cache_bytes=0)
    for revision in revisions[:5] * 2:
        touch(nothing, revision)
    assert nothing.residency.counters().store_reads == 10


def test_stages_of_a_load_are_kept(place: Place) -> None:
    revision = place.commit("a")
    with place.gated_reads() as let_go:
        lease = place.residency.lease(revision, place.store)
        place.reading.acquire(timeout=20)
        threading.Event().wait(0.05)
        let_go(1)
        lease.result()
    (resident,) = place.residency.residents()
    assert resident.times is not None
    assert resident.times.resolve >= 0.05
    assert min(resident.times.to_dict().values()) > 0
    assert resident.times.total < 10


def test_other_bases_and_ranks_that_never_fit_are_refused(place: Place) -> None:
    with pytest.raises(BaseMismatch, match="no meaning"):
        place.residency.check_base("0" * 64, "carol@1")
    with pytest.raises(ConfigError, match="slot_rows=100"):
        place.residency.place(place.page(100))
    with pytest.raises(ConfigError, match="slot_rows=100"):
        place.residency.lease(place.commit("wide", place.page(100)), place.store)


def test_a_wave_of_loads_costs_a_step_no_more_copies_than_are_in_flight(open_place: Callable[..., Place]) -> None:
    place = open_place(slot_rows=512, loads_in_flight=2)
    revisions = [place.commit(f"r{i}", place.page(4, seed=i)) for i in range(40)]
    log: list[str] = []
    load, plan = place.bank.load, place.engine.scheduler.plan
    place.bank.load = lambda page: log.append("copy") or load(page)
    place.engine.scheduler.plan = lambda: log.append("step") or plan()  # type: ignore[method-assign, func-returns-value]
    sampling = SampleConfig(max_tokens=200)
    request = Request(tokens=PROBE, sampling=sampling, revision="base", end_ids=frozenset())
    answer = place.engine.submit(request)
    next(iter(answer))
    for lease in [place.residency.lease(revision, place.store) for revision in revisions]:
        lease.result()
    assert not answer.done, "the answer is longer than the wave"
    answer.cancel()
    between = [len(list(group)) for what, group in groupby(log) if what == "copy"]
    assert sum(between) == 40
    assert max(between) <= 2
    assert log.count("step") >= 20


def test_many_threads_over_few_slots_lose_and_mix_nothing(open_place: Callable[..., Place]) -> None:
    place = open_place(load_queue=100, host_cache_bytes=0)
    revisions = [place.commit(f"r{i}", place.page(rank=(4, 8, 16)[i % 3], seed=i)) for i in range(12)]
    alone = {}
    for revision in revisions:
        with place.residency.lease(revision, place.store) as slot:
            alone[revision.digest] = answer(place, slot)

    def ask(turn: int) -> bool:
        revision = revisions[(turn * 7) % 12]
        while True:
            try:
                with place.residency.lease(revision, place.store) as slot:
                    return torch.equal(answer(place, slot), alone[revision.digest])
            except CapacityError:
                threading.Event().wait(0.001)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(120)))
    assert place.residency._room.promised == 0
    assert place.residency.counters().leased == 0
