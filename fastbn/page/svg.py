"""Pieces of SVG that every chart is made of: a drawing, a text, a tooltip."""

from __future__ import annotations

from collections.abc import Sequence

from fastbn.page.page import Html, text

WIDTH = 420
GLYPH = 6.6  # units that a glyph takes at most, on average: what keeps texts apart


def fit(name: str, room: float) -> str:
    """Return a name cut to what a line holds; its mark's tooltip and the chart's text have it whole."""
    most = int(room / GLYPH)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def tooltip(value: str) -> str:
    """Return a mark's tooltip."""
    return f"<title>{text(value)}</title>"


def written(x: float, y: float, value: str, style: str = "", place: str = "start") -> str:
    """Return a text at (x, y), in a class of the page's styles."""
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind} text-anchor="{place}">{text(value)}</text>'


def drawing(said: str, height: float, drawn: Sequence[str]) -> Html:
    """Return the chart's parts as one picture; `said` stands for it where it can't be seen."""
    return Html(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{text(said)}">{"".join(drawn)}</svg>'
    )
