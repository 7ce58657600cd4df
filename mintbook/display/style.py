"""The one style sheet of all cards."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


@cache
def style_tag() -> str:
    """Return the ``<style>`` element that each card carries, without comments and indentation."""
    sheet = files("mintbook.display").joinpath("style.css").read_text(encoding="utf-8")
    without_comments = re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL)
    return f"<style>{' '.join(without_comments.split())}</style>"
