from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mintbook.config import TrainConfig
from mintbook.errors import FormatError
from mintbook.store.manifest import Manifest


def test_a_manifest_reads_back_equal_through_json(made: Any) -> None:
    manifest = made.manifest(
        made.page(),
        train=TrainConfig(steps=3).to_dict(),
        metrics={"loss": [0.5, 0.25]},
        rollout_ids=["a", "b"],
        cell="alice.train(…)\ud800",
        lora={**made.lora.to_dict(), "targets": ("q_proj", "v_proj")},
    )
    again = Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))
    assert again == manifest
    assert again.digest == manifest.digest
    assert again.rollout_ids == ("a", "b") and again.lora["targets"] == ["q_proj", "v_proj"]


def test_every_field_changes_the_digest(made: Any) -> None:
    manifest = made.manifest(made.page())
    other = {
        **{name: value + "0" for name, value in manifest.to_dict().items() if isinstance(value, str)},
        **{name: value + 1 for name, value in manifest.to_dict().items() if isinstance(value, int | float)},
        **{name: {"x": 1} for name in ("lora", "train", "metrics", "packages", "receipt")},
        **dict.fromkeys(("parent", "data_digest", "cell"), "x"),
        **dict.fromkeys(("targets", "rollout_ids"), ("x",)),
    }
    assert set(other) == set(manifest.to_dict())
    digests = {made.manifest(made.page(), **{name: value}).digest for name, value in other.items()}
    assert len(digests | {manifest.digest}) == len(other) + 1


def test_the_digest_does_not_depend_on_the_order_of_keys(made: Any) -> None:
    first = made.manifest(made.page(), metrics={"a": 1, "b": 2})
    assert first.digest == made.manifest(made.page(), metrics={"b": 2, "a": 1}).digest


def test_later_changes_of_what_it_was_made_from_stay_out(made: Any) -> None:
    metrics = {"loss": [1.0]}
    manifest = made.manifest(made.page(), metrics=metrics)
    digest = manifest.digest
    metrics["loss"].append(2.0)
    assert manifest.digest == digest


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}])
def test_what_json_has_no_form_for_is_refused(made: Any, value: object) -> None:
    with pytest.raises(FormatError, match="JSON"):
        made.manifest(made.page(), metrics={"loss": value})


def test_unknown_and_missing_fields_are_refused(made: Any) -> None:
    data = made.manifest(made.page()).to_dict()
    with pytest.raises(FormatError, match=r"'weigths_digest'.*'weights_digest'"):
        Manifest.from_dict({**data, "weigths_digest": "x"})
    del data["rank"]
    with pytest.raises(FormatError, match="rank"):
        Manifest.from_dict(data)
