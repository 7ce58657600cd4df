from __future__ import annotations

import json

import pytest
import torch

from mintbook.diff.behaviour import Probe, Reading, behaviour_diff
from mintbook.diff.report import ANSWERS_SHOWN, Diff, Side
from mintbook.diff.weights import weight_diff
from mintbook.store.page import Page, Site

SITES = (
    Site("model.layers.0.self_attn.q_proj", 8, 8),
    Site("model.layers.10.self_attn.q_proj", 8, 8),
    Site("model.layers.2.mlp.up_proj", 8, 12),
    Site("score", 8, 4),
)
LEFT, RIGHT = Side("alice@1", "sha256:aaaaaaaa1111"), Side("alice@2", "sha256:bbbbbbbb2222")


def page(seed: int) -> Page:
    generator = torch.Generator().manual_seed(seed)
    return Page(torch.randn(2, sum(s.width for s in SITES), generator=generator), SITES, (2,) * 4, (1.0,) * 4)


def diff(probes: int = 2) -> Diff:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    readings = [
        Reading(Probe(f"What <b>{i}</b>?"), (1, 2, 3), logits[0], logits[1], "It is <i>red</i>.", "It is blue.")
        for i in range(probes)
    ]
    return Diff(LEFT, RIGHT, weight_diff(page(0), page(1)), behaviour_diff(readings, str) if probes else None)


def test_the_card_tells_weights_and_behaviour_and_escapes_what_models_say() -> None:
    html = diff()._repr_html_()
    for words in ("alice@1", "bbbbbbbb", "2 of 2", "q_proj", "up_proj", "<del>", "<ins>blue", "KL(left ‖ right)"):
        assert words in html
    assert "<b>0" not in html
    assert "<i>red" not in html
    text = str(diff().card())
    assert "[-" in text
    assert "{+blue" in text


def test_more_changed_answers_than_the_card_shows_are_counted() -> None:
    text = str(diff(ANSWERS_SHOWN + 3).card())
    assert "3 more changed answers" in text
    assert text.count("{+blue") == ANSWERS_SHOWN


def test_without_probes_or_without_a_difference_the_card_says_so() -> None:
    assert "Behaviour was not compared" in str(diff(0).card())
    same = Diff(LEFT, RIGHT, weight_diff(page(0), page(0)))
    assert "The two sides have the same weights." in str(same.card())
    assert repr(same) == "<Diff alice@1 → alice@2 · ‖ΔW‖ 0>"


def test_the_figure_has_every_layer_in_order_and_a_bar_for_each_probe() -> None:
    found = diff()
    heat, bars = found.figure().data
    assert list(heat.y) == ["0", "2", "10", "other"]
    assert list(heat.x) == ["self_attn.q_proj", "mlp.up_proj", "score"]
    norms = {m.name: m.difference.norm for m in found.weights.modules}
    assert heat.z[2][0] == pytest.approx(norms["model.layers.10.self_attn.q_proj"])
    assert heat.z[0][1] is None
    assert list(bars.y) == ["1. What &lt;b&gt;0&lt;/b&gt;?", "2. What &lt;b&gt;1&lt;/b&gt;?"]
    assert list(bars.x) == pytest.approx([probe.kl for probe in found.behaviour.probes])  # type: ignore[union-attr]
    assert len(diff(0).figure().data) == 1


def test_plain_data_frame_and_repr() -> None:
    found = diff()
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["left"] == {"label": "alice@1", "digest": "sha256:aaaaaaaa1111"}
    assert len(data["weights"]["modules"]) == 4
    assert data["behaviour"]["changed"] == 2
    assert diff(0).to_dict()["behaviour"] is None
    assert found.frame().height == 4
    assert repr(found).startswith("<Diff alice@1 → alice@2 · ‖ΔW‖ ")
    assert repr(found).endswith("2 of 2 answers changed>")
