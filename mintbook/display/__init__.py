"""Plain-data display types that tell one story as text, HTML and SVG; they know nothing of adapters or sessions."""

from mintbook.display.bars import Bars
from mintbook.display.block import Block
from mintbook.display.card import Card
from mintbook.display.curve import Curve
from mintbook.display.facts import Facts
from mintbook.display.heatmap import HeatMap
from mintbook.display.marked import Marked, word_marks
from mintbook.display.note import Note
from mintbook.display.quantity import bytes_text, number_text, seconds_text, short_digest
from mintbook.display.table import Table

__all__ = [
    "Bars",
    "Block",
    "Card",
    "Curve",
    "Facts",
    "HeatMap",
    "Marked",
    "Note",
    "Table",
    "bytes_text",
    "number_text",
    "seconds_text",
    "short_digest",
    "word_marks",
]
