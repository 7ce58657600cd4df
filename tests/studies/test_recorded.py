"""What the project says it can do is what was recorded: the rows that ship, against the promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mintbook.studies
from mintbook.studies.recall import GROUPS, PEOPLE_PROTOCOL, SUCCESSION_PROTOCOL

HERE = Path(mintbook.studies.__file__).parent


def recorded(name: str) -> dict[str, Any]:
    file = HERE / f"{name}_recorded.json"
    assert file.is_file(), f"{file.name} is missing: run `make study`"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert record["machine"]["processor"]
    assert record["machine"]["torch"]
    return record


def test_alice_and_bob_know_their_own_facts_and_keep_the_base() -> None:
    record = recorded("people")
    assert record["protocol"] == PEOPLE_PROTOCOL
    rows = record["rows"]
    assert len(rows) == 6
    assert {(row["seed"], row["person"]) for row in rows} == {(s, p) for s in range(3) for p in ("alice", "bob")}
    for row in rows:
        assert row["asked"] == 24
        assert row["own"] >= 20
        assert row["others"] == row["base"] == 0
        assert row["answered_by_base"] >= 40
        assert row["kept"] >= 0.8 * row["answered_by_base"]
        assert row["perplexity_rise"] <= 0.10


def test_five_trainings_in_a_row_show_what_is_remembered() -> None:
    record = recorded("succession")
    assert record["protocol"] == SUCCESSION_PROTOCOL
    calls = {(row["arm"], row["call"]): row for row in record["rows"] if row["seed"] == 0}
    assert set(calls) == {(arm, call) for arm in ("alone", "repeated") for call in range(1, len(GROUPS) + 1)}
    for (_, call), row in calls.items():
        asked = [row[f"group {number}"].split(" of ")[1] for number in range(1, call + 1)]
        assert asked == [str(2 * (last - first)) for first, last in GROUPS[:call]]
    last = calls["repeated", len(GROUPS)]
    assert sum(int(last[f"group {i + 1}"].split()[0]) for i in range(len(GROUPS))) >= 20
