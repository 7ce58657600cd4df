"""Text as it comes: whole characters only, stop texts held back and found across tokens."""

from __future__ import annotations

from typing import Any

import pytest

from mintbook.engine.detokenizer import Detokenizer


@pytest.mark.parametrize("text", ["plain words", "Tromsø — 你好, naïve café 🙂!", "\n\n1. a\tb"])
def test_bytes_become_whole_characters(tiny_tokenizer: Any, text: str) -> None:
    tokens = tiny_tokenizer(text).input_ids
    detokenizer = Detokenizer(tiny_tokenizer, ())
    pieces = [detokenizer.add(token) for token in tokens]
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.finish() == text == detokenizer.text


def test_a_stop_text_across_tokens_is_held_back_and_cut(tiny_tokenizer: Any) -> None:
    detokenizer = Detokenizer(tiny_tokenizer, ("END", "##"))
    shown = ""
    for token in tiny_tokenizer("an EN and END more").input_ids:
        shown += detokenizer.add(token)
        assert "END" not in shown
        if detokenizer.stopped:
            break
    assert detokenizer.stopped
    assert shown + detokenizer.finish() == "an EN and "


def test_what_looked_like_a_stop_comes_out_at_the_end(tiny_tokenizer: Any) -> None:
    detokenizer = Detokenizer(tiny_tokenizer, ("STOP",))
    shown = "".join(detokenizer.add(token) for token in tiny_tokenizer("go ST").input_ids)
    assert shown == "go "
    assert detokenizer.finish() == "ST"
