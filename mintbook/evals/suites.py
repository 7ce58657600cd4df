"""The questions and the prose that ship with mintbook: what a base can do before anyone has trained on it."""

from __future__ import annotations

import json
from importlib.resources import files

from mintbook.evals.recall import Question


def load_general() -> list[Question]:
    """Return questions of general knowledge."""
    entries = json.loads(files("mintbook.evals").joinpath("general.json").read_text(encoding="utf-8"))
    return [Question(entry["question"], tuple(entry["answers"])) for entry in entries]


def load_prose() -> list[str]:
    """Return paragraphs of English prose, written for mintbook, on which perplexity is measured."""
    text = files("mintbook.evals").joinpath("prose.txt").read_text(encoding="utf-8")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
