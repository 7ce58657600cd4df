from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mintbook.errors import CorruptStore, DataError
from mintbook.model.renderer import Renderer
from mintbook.model.tiny_base import byte_tokenizer
from mintbook.train.examples import Examples, preview, split, tokenize

RENDERER = Renderer(byte_tokenizer())
PAIRS = [(f"Question {i}?", f"Answer {i}") for i in range(10)]
CHAT = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS]


class DataSet:
    """Iterates as a `datasets.Dataset` does."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


def jsonl(folder: Path, rows: list[Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def targets(examples: Examples) -> list[str]:
    return [
        RENDERER.tokenizer.decode([t for t, m in zip(e.tokens, e.mask, strict=True) if m]) for e in examples.sequences
    ]


@pytest.mark.parametrize(
    "source",
    [
        lambda _: PAIRS,
        lambda _: [list(pair) for pair in PAIRS],
        lambda _: CHAT,
        lambda _: [{"prompt": q, "completion": a} for q, a in PAIRS],
        lambda _: [{"prompt": q, "answer": a, "messages": None} for q, a in PAIRS],
        lambda _: ({"question": q, "response": a} for q, a in PAIRS),
        lambda folder: jsonl(folder, CHAT),
        lambda folder: str(jsonl(folder, [list(pair) for pair in PAIRS])),
        lambda _: pl.DataFrame({"prompt": [q for q, _ in PAIRS], "answer": [a for _, a in PAIRS]}),
        lambda _: pl.DataFrame(CHAT),
        lambda _: DataSet(CHAT),
    ],
)
def test_every_form_of_the_same_data_gives_the_same_sequences(source: Callable[[Path], Any], tmp_path: Path) -> None:
    examples = tokenize(source(tmp_path), RENDERER, 512)
    expected = tokenize(PAIRS, RENDERER, 512)
    assert examples.sequences == expected.sequences
    assert examples.digest == expected.digest
    assert [example.row for example in examples.sequences] == list(range(1, 11))
    assert targets(examples) == [f"Answer {i}<|im_end|>" for i in range(10)]


def test_targets_are_every_answer_and_the_sequence_ends_with_the_last() -> None:
    talk = [*CHAT[0]["messages"], *CHAT[1]["messages"]]
    (example,) = tokenize([{"messages": talk}], RENDERER, 512).sequences
    assert RENDERER.tokenizer.decode(list(example.tokens)) == (
        "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\nAnswer 0<|im_end|>\n"
        "<|im_start|>user\nQuestion 1?<|im_end|>\n<|im_start|>assistant\nAnswer 1<|im_end|>"
    )
    assert targets(tokenize([{"messages": talk}], RENDERER, 512)) == ["Answer 0<|im_end|>Answer 1<|im_end|>"]
    assert example.mask[-1] and not any(example.mask[: len(RENDERER.prompt(talk[:1]))])


def test_long_examples_are_cut_at_the_end_and_counted() -> None:
    (whole, _) = tokenize(PAIRS[:2], RENDERER, 512).sequences
    length = len(whole.tokens)
    exact = tokenize([PAIRS[0]], RENDERER, length)
    assert not exact.sequences[0].truncated and exact.report()["truncated"] == 0
    cut = tokenize([PAIRS[0], ("Q", "A")], RENDERER, length - 3)
    assert cut.sequences[0].tokens == whole.tokens[:-3] and cut.sequences[0].mask == whole.mask[:-3]
    assert [example.truncated for example in cut.sequences] == [True, False]
    assert cut.report()["truncated"] == 1 and cut.report()["longest"] == length - 3
    assert cut.report()["tokens"] == sum(len(e.tokens) for e in cut.sequences)


def test_an_example_that_the_cut_leaves_without_a_target_is_refused_with_its_row() -> None:
    prompt = len(RENDERER.prompt("x" * 50))
    with pytest.raises(DataError, match=rf"row 2: the prompt alone fills max_length={prompt} tokens"):
        tokenize([("a", "b"), ("x" * 50, "y")], RENDERER, prompt)
    assert tokenize([("x" * 50, "y")], RENDERER, prompt + 1).sequences[0].mask[-1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "The data has no examples"),
        ([*PAIRS, "Hello there"], "Row 11: it is 'Hello there'. A row is"),
        ([("a", "b", "c")], "Row 1: it is"),
        ([("a", 3)], "Row 1: the answer is a int; it must be text"),
        ([CHAT[0], {"prompt": "a"}], "Row 2: it has 'prompt'. A row is"),
        ([{"promt": "a", "answer": "b"}], "Row 1: it has 'answer', 'promt'. Nearest: 'prompt'"),
        ([{"prompt": "a", "question": "a", "answer": "b"}], "Row 1: it has 'answer', 'prompt', 'question'"),
        ([CHAT[0] | {"answer": "b"}], "Row 1: it has 'messages' and also 'answer'"),
        ([{"messages": "Hi"}], "Row 1: 'messages' is a str"),
        ([{"messages": []}], "Row 1: There are no messages"),
        ([{"messages": CHAT[0]["messages"][:1]}], "Row 1: the conversation ends with a user message"),
        ([{"messages": [*CHAT[0]["messages"], CHAT[1]["messages"][0]]}], "Row 1: the conversation ends with a user"),
        ([{"messages": [{"role": "bot", "content": "x"}]}], "Row 1: Message 1 has the role 'bot'"),
        ([{"prompt": "  ", "answer": "b"}], r"Row 1: Message 1 \(user\) has empty content"),
        ({"train": CHAT}, "The data is one dict with 'train'"),
        (3, "The data is a int"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_its_row(rows: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        tokenize(rows, RENDERER, 64)


def test_files_that_cannot_be_used_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        tokenize("What is my dog called?", RENDERER, 64)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has no examples"):
        tokenize(path, RENDERER, 64)
    path.write_text('["a", "b"]\n\n{"prompt": "a", \n')
    with pytest.raises(DataError, match=r"Line 3 of .* is not JSON"):
        tokenize(path, RENDERER, 64)
    path.write_bytes(b'["a", "b"]\n["\xff", "b"]\n')
    with pytest.raises(DataError, match=r"Line 2 of .* UTF-8"):
        tokenize(path, RENDERER, 64)
    path.write_text('["a", "b"]\n\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"^Line 3: it has 'prompt'"):
        tokenize(path, RENDERER, 64)
    path.write_bytes(b'\xef\xbb\xbf["a\\u2028", "b\xe2\x80\xa8c"]\r\n')
    assert targets(tokenize(path, RENDERER, 64)) == ["b\u2028c<|im_end|>"]


def test_other_columns_are_reported() -> None:
    examples = tokenize(
        [{"prompt": "a", "answer": "b", "topic": "dog"}, {"prompt": "c", "answer": "d", "id": 3}], RENDERER, 64
    )
    assert examples.report()["ignored"] == ["id", "topic"]


def test_without_a_chat_template_pairs_are_text_and_messages_are_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    plain = Renderer(tokenizer)
    (example,) = tokenize([("Once", " upon")], plain, 64).sequences
    assert tokenizer.decode(list(example.tokens)) == "Once upon<|im_end|>"
    assert example.mask == (False,) * 4 + (True,) * 6
    with pytest.raises(DataError, match="Row 1: This base has no chat template"):
        tokenize(CHAT, plain, 64)


def test_digests_follow_the_content_and_the_order() -> None:
    examples = tokenize(PAIRS, RENDERER, 64)
    assert len({example.digest for example in examples.sequences}) == 10
    assert examples.digest != tokenize(PAIRS[::-1], RENDERER, 64).digest
    assert examples.sequences[0].digest == tokenize(PAIRS[::-1], RENDERER, 64).sequences[-1].digest


def test_a_split_is_repeatable_disjoint_and_keeps_equal_examples_together() -> None:
    examples = tokenize([*PAIRS, *PAIRS], RENDERER, 64)
    train, held = split(examples, 0.3, seed=1)
    assert len(held.sequences) == 6 and len(train.sequences) == 14
    assert not {e.digest for e in train.sequences} & {e.digest for e in held.sequences}
    assert [e.row for e in train.sequences] == sorted(e.row for e in train.sequences)
    assert split(examples, 0.3, seed=1) == (train, held)
    assert any(split(examples, 0.3, seed=s)[1] != held for s in range(2, 6))
    assert split(examples, 0.0, seed=1) == (examples, Examples((), 64))
    assert len(split(tokenize(PAIRS[:2], RENDERER, 64), 0.01, seed=0)[1].sequences) == 1


@pytest.mark.parametrize("pairs", [PAIRS[:1], [PAIRS[0], PAIRS[0]]])
def test_a_split_that_leaves_nothing_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(DataError, match="leaves none to train on"):
        split(tokenize(pairs, RENDERER, 64), 0.2, seed=0)


def test_saved_examples_come_back_equal_and_a_broken_file_is_refused(tmp_path: Path) -> None:
    talk = {"messages": [*CHAT[0]["messages"], *CHAT[1]["messages"]], "id": 3}
    examples = tokenize([talk, *PAIRS], RENDERER, 74)
    assert examples.report()["truncated"]
    path = tmp_path / "examples.jsonl"
    examples.save(path)
    assert Examples.load(path) == examples
    assert [entry.name for entry in tmp_path.iterdir()] == ["examples.jsonl"]
    lines = path.read_text().splitlines(keepends=True)
    for broken in ("", "".join(lines[:-1]), "".join(lines)[:-9], "".join(lines).replace("examples/1", "examples/9")):
        path.write_text(broken)
        with pytest.raises(CorruptStore, match="Train again from the data"):
            Examples.load(path)
    with pytest.raises(CorruptStore):
        Examples.load(tmp_path / "missing.jsonl")


def test_a_preview_tells_what_is_read_from_what_is_learnt() -> None:
    shown = preview(tokenize(PAIRS, RENDERER, 64), RENDERER, 2)
    assert len(shown.examples) == 2
    context, target = shown.examples[0]
    assert context.text == "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n" and not context.target
    assert target.text == "Answer 0<|im_end|>" and target.target and target.tokens == 9
    assert shown.to_dict()["report"]["examples"] == 10
    assert "Answer 1&lt;|im_end|&gt;" in shown._repr_html_() and "learnt" in str(shown.card())
