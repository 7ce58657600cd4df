"""From a conversation to the tokens that the base reads, by the base's own chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from mintbook.errors import DataError, nearest
from mintbook.store.manifest import canonical

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens that belong together; ``target`` says that the assistant is to say them."""

    tokens: tuple[int, ...]
    target: bool


def checked_turns(messages: Iterable[Any]) -> tuple[Turn, ...]:
    """Return the turns of ``[{"role": …, "content": …}, …]``; raise `DataError` that names one that is unusable."""
    turns = tuple(_checked_turn(number, message) for number, message in enumerate(messages, start=1))
    if not turns:
        raise DataError('There are no messages. Give at least one, such as {"role": "user", "content": "Hello"}.')
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system" and number > 1:
            raise DataError(f"Message {number} has the role 'system'. Only the first message may have it.")
    if turns[0].role == "assistant" or [turn.role for turn in turns[:2]] == ["system", "assistant"]:
        raise DataError("The assistant speaks before any user. Put the user's message first.")
    return turns


def _checked_turn(number: int, message: Any) -> Turn:
    where = f"Message {number}"
    if not isinstance(message, Mapping):
        raise DataError(f'{where} is {_shown(message)}; it must be a dict {{"role": …, "content": …}}.')
    unknown = sorted(str(key) for key, value in message.items() if key not in ("role", "content") and value is not None)
    if unknown:
        raise DataError(
            f"{where} has {', '.join(map(repr, unknown))}, which cannot be rendered. Keep 'role' and 'content'."
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else ""
        raise DataError(f"{where} has the role {_shown(role)}; the roles are {', '.join(ROLES)}.{hint}")
    if not isinstance(content, str):
        raise DataError(f"{where} ({role}) has {_shown(content)} as content; it must be text.")
    if role != "system" and not content.strip():
        raise DataError(f"{where} ({role}) has empty content. Fill it, or leave the conversation out.")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} ({role}) holds half a character at {error.start}, which has no tokens. Mend the text."
        ) from error
    return Turn(role, content)


class Renderer:
    """Renders prompts and conversations with a transformers tokenizer; the same text always gives the same tokens.

    A tokenizer without a chat template takes plain text only: a prompt, or a prompt and its completion.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def has_template(self) -> bool:
        """Whether the base has a chat template, and so takes messages."""
        return bool(self.tokenizer.chat_template)

    @cached_property
    def digest(self) -> str:
        """sha256 over the chat template, the tokenizer and the end tokens: what decides a conversation's tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        tokenizer = backend.to_str() if backend is not None else canonical(self.tokenizer.get_vocab())
        ends = sorted(self.end_ids)
        text = canonical({"template": self.tokenizer.chat_template, "tokenizer": tokenizer, "end_ids": ends})
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's end token, and the one that the template sets after an answer."""
        ends = {self.tokenizer.eos_token_id} - {None}
        if self.has_template:
            answered = self._parts((Turn("user", "a"), Turn("assistant", "b")))[1][0]
            special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            ends.update([token for token in self._tokens(answered) if token in special][:1])
        return frozenset(ends)

    def prompt(self, messages: str | Iterable[Mapping[str, str]]) -> list[int]:
        """Return the tokens that the model answers; a string is one user turn, or plain text without a template."""
        if isinstance(messages, str):
            if not self.has_template:
                return list(self.tokenizer(messages).input_ids)
            messages = [{"role": "user", "content": messages}]
        return self._tokens(self._text(checked_turns(messages), prompt=True))

    def conversation(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a whole conversation, as training sees it."""
        return [token for span in self.spans(checked_turns(messages)) for token in span.tokens]

    def spans(self, turns: Sequence[Turn]) -> list[Span]:
        """Return the conversation as spans, each answer with its end token a target.

        What comes before an answer has the very tokens that `prompt` gives for it. Raises `DataError` when the template
        renders a part differently once more follows, so that no span of the whole is the answer.
        """
        spans: list[Span] = []
        for text, target in self._parts(turns):
            tokens = tuple(self._tokens(text))
            last = max((i + 1 for i, token in enumerate(tokens) if token in self.end_ids), default=len(tokens))
            spans += [Span(tokens[:last], True), Span(tokens[last:], False)] if target else [Span(tokens, False)]
        return [span for span in spans if span.tokens]

    def completion(self, prompt: str, answer: str) -> list[Span]:
        """Return one question and its answer as spans; without a template, as the plain text and the end token."""
        if self.has_template:
            return self.spans((Turn("user", prompt), Turn("assistant", answer)))
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return [Span(tuple(self.prompt(prompt)), False), Span((*self._tokens(answer), *end), True)]

    def _parts(self, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """Return the rendered text in pieces, with whether each is an answer."""
        parts: list[tuple[str, bool]] = []
        done = ""
        for at, turn in enumerate(turns):
            if turn.role == "assistant":
                before = self._text(turns[:at], prompt=True)
                parts.append((_after(done, before), False))
                done = self._text(turns[: at + 1], prompt=False)
                parts.append((_after(before, done), True))
        parts.append((_after(done, self._text(turns, prompt=False)), False))
        return parts

    def _text(self, turns: Sequence[Turn], *, prompt: bool) -> str:
        if not self.has_template:
            raise DataError(
                "This base has no chat template, so it has no form for messages. Give plain text: a prompt, or as "
                "examples pairs of prompt and completion. Or open the session on an instruct model."
            )
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise DataError(f"The chat template of this base refuses the conversation: {error}") from error
        return text

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _after(start: str, whole: str) -> str:
    if not whole.startswith(start):
        raise DataError(
            "The chat template of this base renders an earlier part of the conversation differently once more follows, "
            "so the tokens of the answers cannot be told. Give one question and one answer per example."
        )
    return whole[len(start) :]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
