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


def legend(top: float, entries: Sequence[tuple[str, str]]) -> tuple[list[str], float]:
    """Return swatches with their names in lines from `top` on, and where the lines end. entries: each name
    with its bars' classes."""
    drawn, x = [], 0.0
    for name, style in entries:
        wide = 30 + GLYPH * len(name)
        if x and x + wide > WIDTH:
            x, top = 0.0, top + 18
        drawn.append(f'<rect class="{style}" x="{x:.1f}" y="{top:g}" width="10" height="10" />')
        drawn.append(written(x + 16, top + 9, fit(name, WIDTH - 16)))
        x += wide
    return drawn, top + 18


def drawing(said: str, height: float, drawn: Sequence[str]) -> Html:
    """Return the chart's parts as one picture; `said` stands for it where it can't be seen."""
    return Html(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{text(said)}">{"".join(drawn)}</svg>'
    )


def labelled(
    labels: Sequence[str], spots: Sequence[tuple[float, float]], taken: list[tuple[float, float, float]]
) -> list[str]:
    """Draw labels beside their points, at the first of four places that nothing has `taken`: (x, y, half the
    width) of marks and labels."""
    drawn = []
    for label, (x, y) in zip(labels, spots, strict=False):
        half = GLYPH * len(label) / 2
        places = [(x + 7 + half, y), (x - 7 - half, y), (x, y - 12), (x, y + 12)]
        free = [
            (a, b)
            for a, b in places
            if all(abs(a - c) > half + width or abs(b - d) > 9 for c, d, width in taken) and a + half < WIDTH
        ]
        a, b = (free or places)[0]
        taken.append((a, b, half))
        drawn.append(written(a, b + 4, label, place="middle"))
    return drawn
