"""Text that somebody else wrote, made harmless for a page and for a terminal.

Names, prompts and generated answers are hostile input. What cannot be seen is made visible, so that nothing reorders,
recolours or hides the text around it: control, bidirectional and other invisible characters become ``⟨U+202E⟩``.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Joiners shape emoji and several scripts, and can move nothing: they stay.
_JOINERS = {"\u200c", "\u200d"}
_ENDS_OF_LINE = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
# Notebook front ends typeset $…$ and \(…\) in HTML output. They look for both delimiters in one text node.
_MATHS = re.compile(r"[$\\]")


def _visible(character: str) -> str:
    if character == "\t":
        return "    "
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in _JOINERS
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def visible_lines(text: str) -> list[str]:
    r"""Return the lines of ``text`` with every invisible character made visible.

    >>> visible_lines("red \x1b[31m\nsecond")
    ['red ⟨U+001B⟩[31m', 'second']
    """
    lines = _ENDS_OF_LINE.split(text)
    return [line if line.isascii() and line.isprintable() else "".join(map(_visible, line)) for line in lines]


def one_line(text: str) -> str:
    r"""Return ``text`` as a single visible line; an end of line becomes ``⏎``.

    >>> one_line("alice\nbob")
    'alice⏎bob'
    """
    return "⏎".join(visible_lines(text))


def escaped(text: str) -> str:
    """Return ``text`` as the content of an HTML element, on one line, safe from markup and from maths typesetting.

    >>> escaped("<b>$5")
    '&lt;b&gt;<span>$</span>5'
    """
    return _MATHS.sub(lambda found: f"<span>{found[0]}</span>", html.escape(one_line(text), quote=True))


def escaped_lines(text: str) -> str:
    r"""Return ``text`` as HTML content whose lines are kept by ``<br>``, which survives where styles do not.

    >>> escaped_lines("a\nb")
    'a<br>b'
    """
    return "<br>".join(map(escaped, visible_lines(text)))


def escaped_attribute(text: str) -> str:
    """Return ``text`` for use between the quotes of an HTML attribute.

    >>> escaped_attribute('say "hi"')
    'say &quot;hi&quot;'
    """
    return html.escape(one_line(text), quote=True)
