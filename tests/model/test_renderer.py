from __future__ import annotations

from typing import Any

import pytest

from mintbook.errors import DataError
from mintbook.model.renderer import Renderer, checked_turns
from mintbook.model.tiny_base import byte_tokenizer

END, BOS, IM_END = 0, 1, 2
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello Tromsø"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "\n\nBye"},
]
# As Qwen3 does: what an earlier answer thought is left out once a user speaks again.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As SmolLM2 does: a system turn of its own when the first message is none.
SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
STRICT = "{% if messages|length > 3 %}{{ raise_exception('Too long') }}{% endif %}x"
# An end of turn that is not the tokenizer's end token, as in Llama 3.
OTHER_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|pad|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def renderer(template: str | None = "") -> Renderer:
    tokenizer = byte_tokenizer()
    if template != "":
        tokenizer.chat_template = template
    return Renderer(tokenizer)


def text(chosen: Renderer, tokens: Any) -> str:
    return str(chosen.tokenizer.decode(list(tokens)))


@pytest.mark.parametrize("template", ["", SYSTEM + byte_tokenizer().chat_template, OTHER_END])
def test_targets_are_the_answers_and_their_ends_and_contexts_are_the_prompts(template: str) -> None:
    chosen = renderer(template)
    spans = chosen.spans(checked_turns(TALK))
    assert [span.target for span in spans].count(True) == 2
    end = "<|pad|>" if template == OTHER_END else "<|im_end|>"
    answers = [text(chosen, span.tokens) for span in spans if span.target]
    assert answers == [f"Hello Tromsø{end}", f"\n\nBye{end}"]
    for turns in (1, 3):
        prompt = chosen.prompt(TALK[:turns])
        assert chosen.conversation(TALK)[: len(prompt)] == prompt
        answer = [span for span in spans if span.target][turns // 2]
        assert chosen.conversation(TALK)[len(prompt) : len(prompt) + len(answer.tokens)] == list(answer.tokens)


def test_a_string_is_one_user_turn() -> None:
    chosen = renderer()
    assert chosen.prompt("Hi") == chosen.prompt([{"role": "user", "content": "Hi"}])
    assert text(chosen, chosen.prompt("Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_end_ids_have_the_end_that_the_template_sets() -> None:
    assert renderer().end_ids == {IM_END}
    assert renderer(OTHER_END).end_ids == {IM_END, 3}
    assert renderer(None).end_ids == {IM_END}


def test_a_template_that_rewrites_earlier_turns_is_refused_for_two_answers_and_taken_for_one() -> None:
    chosen = renderer(FORGETFUL)
    with pytest.raises(DataError, match="renders an earlier part of the conversation differently"):
        chosen.spans(checked_turns(TALK))
    spans = chosen.spans(checked_turns(TALK[:2]))
    assert text(chosen, spans[1].tokens) == "<think></think>Hello Tromsø<|im_end|>"
    assert chosen.prompt(TALK[:3])


def test_the_template_may_refuse() -> None:
    with pytest.raises(DataError, match="refuses the conversation: Too long"):
        renderer(STRICT).prompt([*TALK, *TALK])


def test_without_a_template_text_is_taken_and_messages_are_refused() -> None:
    chosen = renderer(None)
    assert text(chosen, chosen.prompt("Once upon")) == "Once upon"
    context, target = chosen.completion("Once upon", " a time")
    assert (text(chosen, context.tokens), text(chosen, target.tokens)) == ("Once upon", " a time<|im_end|>")
    assert (context.target, target.target) == (False, True)
    with pytest.raises(DataError, match="no chat template"):
        chosen.prompt([{"role": "user", "content": "Hi"}])
    with pytest.raises(DataError, match="no chat template"):
        chosen.conversation(TALK)


def test_the_digest_follows_template_and_tokenizer() -> None:
    changed = byte_tokenizer()
    changed.add_tokens(["mint"])
    digests = {renderer().digest, renderer(OTHER_END).digest, renderer(None).digest, Renderer(changed).digest}
    assert len(digests) == 4
    assert renderer().digest == renderer().digest


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "There are no messages"),
        (["Hi"], r"Message 1 is 'Hi'; it must be a dict"),
        ([{"role": "usr", "content": "Hi"}], r"role 'usr'; the roles are system, user, assistant. Nearest: 'user'"),
        ([{"role": 3, "content": "Hi"}], "role 3"),
        ([{"content": "Hi"}], "role None"),
        ([USER, {"role": "assistant", "content": None}], r"Message 2 \(assistant\) has None as content"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "it must be text"),
        ([USER, {"role": "assistant", "content": " \n"}], "empty content"),
        ([{"role": "user", "content": "\ud83d"}], "half a character at 0"),
        ([USER, ANSWER | {"weight": 0}], "Message 2 has 'weight', which cannot be rendered"),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "Message 3 has the role 'system'. Only the first"),
        ([ANSWER, USER], "The assistant speaks before any user"),
        ([{"role": "system", "content": "x"}, ANSWER], "The assistant speaks before any user"),
    ],
)
def test_messages_that_cannot_be_used_are_named(messages: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked_turns(messages)


def test_an_empty_system_turn_and_absent_optional_keys_are_taken() -> None:
    turns = checked_turns([{"role": "system", "content": ""}, USER | {"name": None}])
    assert [turn.role for turn in turns] == ["system", "user"]
