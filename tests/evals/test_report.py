from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mintbook.errors import DataError
from mintbook.evals.perplexity import perplexity
from mintbook.evals.recall import SCORER, Question, score
from mintbook.evals.report import Evaluation, Kept, Rise, Subject

SUBJECT = Subject(
    reference="alice@1",
    digest="sha256:aaaaaaaa1",
    base_name="Tiny",
    base_digest="bbbbbbbb2",
    renderer_digest="cccccccc3",
    targets=("layers.0.q_proj", "layers.1.q_proj"),
    serving_path="engine, shared base, float32 on cpu",
)
FACTS = [Question("Dog?", ("Rex",)), Question("Cat?", ("Tom",))]
GENERAL = [Question(f"{n} + 0?", (str(n),)) for n in range(4)]


def evaluation() -> Evaluation:
    general = Kept(score(GENERAL, ["0", "1", "2", "x"]), score(GENERAL, ["0", "x", "<b>2</b>", "3"]))
    prose = Rise(perplexity([[-1.0, -1.0]]), perplexity([[-1.0, -1.2]]))
    return Evaluation(
        SUBJECT, {"alice": score(FACTS, ["Rex", "<script>"]), "bob": score(FACTS, ["?", "?"])}, general, prose
    )


def test_what_is_kept_counts_only_what_the_base_answers() -> None:
    general = evaluation().general
    assert general is not None
    assert (general.answered, general.kept) == (3, 2)
    assert general.share == pytest.approx(2 / 3)
    none = score(GENERAL, ["x"] * 4)
    assert Kept(none, none).share is None


def test_the_rise_is_relative_to_the_base() -> None:
    prose = evaluation().prose
    assert prose is not None
    assert prose.share == pytest.approx(2.718281828**0.1 - 1)


def test_unlike_measurements_are_not_compared() -> None:
    with pytest.raises(DataError, match="same questions"):
        Kept(score(GENERAL, ["0"] * 4), score(GENERAL[:3], ["0"] * 3))
    with pytest.raises(DataError, match="same tokens"):
        Rise(perplexity([[-1.0, -1.0]]), perplexity([[-1.0], [-1.0]]))


def test_plain_data_names_everything_a_score_belongs_to() -> None:
    data = json.loads(json.dumps(evaluation().to_dict(), allow_nan=False))
    subject = data["subject"]
    assert subject["scorer"] == SCORER
    assert subject["targets"] == list(SUBJECT.targets)
    assert {"reference", "digest", "base_digest", "renderer_digest", "serving_path"} <= subject.keys()
    assert data["recall"]["alice"]["right"] == 1
    assert data["general"]["kept"] == 2
    assert data["prose"]["rise"] == pytest.approx(0.10517, abs=1e-4)
    bare = Evaluation(SUBJECT).to_dict()
    assert bare["general"] is bare["prose"] is None


def test_the_frame_has_a_row_per_question() -> None:
    frame = evaluation().frame()
    assert frame["questions"].to_list() == ["alice"] * 2 + ["bob"] * 2 + ["general"] * 4
    assert frame["base_right"].to_list() == [None] * 4 + [True, True, True, False]
    assert frame["right"].sum() == 1 + 0 + 3
    assert Evaluation(SUBJECT).frame().schema == frame.schema


def test_the_card_tells_scores_and_provenance_and_escapes_answers() -> None:
    html = evaluation()._repr_html_()
    words = (
        "1 of 2 (alice)",
        "2 of the base&#x27;s 3 (67%)",
        "+10.5%",
        "&lt;script&gt;",
        "cccccccc",
        SCORER,
        "float32 on cpu",
    )
    for word in words:
        assert word in html
    assert "<script>" not in html
    assert repr(evaluation()).startswith("<Evaluation alice@1 · recalled 1 of 2 (alice) · ")
    nothing = replace(evaluation(), general=Kept(score(GENERAL, ["x"] * 4), score(GENERAL, ["x"] * 4)))
    assert "0 of the base's 0" in str(nothing.card())
    assert "Answered wrongly" not in str(Evaluation(SUBJECT).card())
