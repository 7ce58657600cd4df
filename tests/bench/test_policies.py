"""A quick readiness benchmark over the tiny base: all policies, the bounds, and what keeps rows from being written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mintbook import bench
from mintbook.bench import bounds, policies
from mintbook.bench.benchmark import Benchmark
from mintbook.errors import MintbookError

SHORT = policies.Plan(new=6, seconds=0.6, rounds=1, checked=4)


@pytest.fixture(scope="module")
def result(tiny_base_folder: Path) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "_plan", lambda *, quick: SHORT)
        return bench.readiness(quick=True, base=tiny_base_folder, dtype="float32", threads=1)


def value(result: Benchmark, case: str, metric: str) -> float:
    return float(result.frame.filter(case=case, metric=metric)["value"].item())


def test_every_policy_has_its_ratio_to_no_loading(result: Benchmark) -> None:
    names = {f"{p}_over_no_loading_{q}" for p in ("admission_off", "admission_on", "two_phase") for q in ("p50", "p95")}
    assert set(result.ratios) == names and all(ratio > 0 for ratio in result.ratios.values())
    assert result.targets["two_phase_over_no_loading_p95"].bound == 1.2


def test_the_old_ask_the_same_under_every_policy(result: Benchmark) -> None:
    asked = {policy: value(result, policy, "old") for policy in policies.POLICIES}
    assert len(set(asked.values())) == 1 and asked["no loading"] > 0


def test_loads_happen_where_the_policy_has_them(result: Benchmark) -> None:
    assert value(result, "no loading", "new, load, p95") == 0
    assert all(value(result, policy, "new, load, p95") > 0 for policy in policies.POLICIES[1:])
    prewarmed = [policy for policy in policies.POLICIES if value(result, policy, "prewarming") > 0]
    assert prewarmed == ["two-phase"]
    assert value(result, "admission off", "new, refusals") == 0


def test_the_bounds_are_rows(result: Benchmark) -> None:
    burst = "1 in flight, 1 in line, burst of 4"
    assert (value(result, burst, "loaded"), value(result, burst, "refused")) == (2, 2)
    assert value(result, "100 requests for one adapter", "loads") == 1


def test_a_bound_that_is_not_held_keeps_every_row_from_being_written(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "_plan", lambda *, quick: SHORT)
    monkeypatch.setattr(bounds, "BURST", 5)
    with pytest.raises(MintbookError, match=r"burst of 5: \(2, 3\) instead of \(2, 2\). No row was written"):
        bench.readiness(quick=True, base=tiny_base_folder, dtype="float32", threads=1, out=tmp_path)
    assert not list(tmp_path.iterdir())
