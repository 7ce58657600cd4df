from __future__ import annotations

import random
import string

import pytest

from mintbook.errors import InvalidReference
from mintbook.store.reference import Reference, check_alias, check_name

FIRST = string.ascii_letters + string.digits + "_"
REST = FIRST + ".-"
HEX = "0123456789abcdef"


def draw_name(random: random.Random) -> str:
    return random.choice(FIRST) + "".join(random.choices(REST, k=random.choice([0, 1, 7, 127])))


def draw_reference(random: random.Random) -> Reference:
    kind = random.randrange(4)
    if kind == 0:
        return Reference(None, digest="".join(random.choices(HEX, k=random.randint(8, 64))))
    if kind == 1:
        return Reference(draw_name(random), number=random.choice([1, 9, 10, 123456789]))
    if kind == 2:
        return Reference(draw_name(random), alias="p" + draw_name(random)[:100])
    return Reference(draw_name(random))


def test_every_reference_reads_back_from_its_text() -> None:
    source = random.Random(0)
    for _ in range(2000):
        reference = draw_reference(source)
        assert Reference.parse(str(reference)) == reference


def test_a_random_text_is_refused_or_reads_back_as_itself() -> None:
    source = random.Random(1)
    accepted = 0
    for _ in range(5000):
        text = "".join(source.choices("ab1.-_@/ é\n", k=source.randint(0, 12)))
        try:
            reference = Reference.parse(text)
        except InvalidReference:
            continue
        assert str(reference) == text
        accepted += 1
    assert 100 < accepted < 4900


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "@3", "@prod", "@abcdef1", "@" + "a" * 65, "@ABCDEF12"),
        *("alice@", "alice@0", "alice@03", "alice@-1", "alice@٣", "alice@3\n", "alice@1" + "0" * 30),
        *("alice@prod@2", "alice@deadbeef", "alice@head"),
        *("al ice", "../alice", ".alice", "-alice", "a/b", "alice\n", "a" * 129, "älice"),
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


def test_what_is_not_text_is_refused_by_name() -> None:
    with pytest.raises(InvalidReference, match="NoneType"):
        Reference.parse(None)  # type: ignore[arg-type]


def test_a_relative_reference_needs_its_record() -> None:
    assert Reference.parse("@2", within="alice") == Reference("alice", number=2)
    assert Reference.parse("@prod", within="alice") == Reference("alice", alias="prod")
    assert Reference.parse("bob@2", within="alice") == Reference("bob", number=2)
    assert Reference.parse("@deadbeef", within="alice") == Reference(None, digest="deadbeef")
    with pytest.raises(InvalidReference):
        Reference.parse("@", within="alice")


@pytest.mark.parametrize("alias", ["12", "deadbeef", "0123456789abcdef", "head", "", "a b", "-x"])
def test_an_alias_never_reads_as_something_else(alias: str) -> None:
    with pytest.raises(InvalidReference):
        check_alias(alias)


@pytest.mark.parametrize("alias", ["prod", "v2", "abcdef1", "2024-01", "deadbeefs"])
def test_an_alias_is_kept_as_written(alias: str) -> None:
    assert check_alias(alias) == alias
    assert Reference.parse(f"x@{alias}").alias == alias


def test_a_name_may_be_digits_or_hexadecimal() -> None:
    assert check_name("deadbeef") == "deadbeef"
    assert Reference.parse("42@7") == Reference("42", number=7)
