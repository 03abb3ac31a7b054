"""The one page template: a report as a single HTML file that needs nothing else, on a screen light or dark,
on a phone, on paper.

    found = page("A report", "What it shows.", [section("Steps", table(["case", "ms"], [["ResNet-14",
    "12.0"]]), paragraph("Done."))]) Path("report.html").write_text(found, encoding="utf-8")

Whatever takes `str` escapes it; `Html` is markup already. No script, font or image is fetched. The markup is
well-formed XML too. fastbn.page.charts draws into it, by the classes k0 … k5 (series) that are coloured here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import NewType

Html = NewType("Html", str)
NOTHING = Html("")
ABSENT = "—"

COLOURS = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #57606a; --line: #d5dae0; --paper: #ffffff;
  --shade: #f4f6f8;
  --c0: #0072b2; --c1: #c04a00; --c2: #00795a; --c3: #9c4a80; --c4: #8a6000; --c5: #57606a; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3acb5; --line: #3a424a;
  --paper: #14181c;
  --shade: #1d2329; --c0: #5ab4f0; --c1: #f08a4b; --c2: #3cc49a; --c3: #e29ac6; --c4: #e5b53a;
  --c5: #a7b0ba; } }
"""
CHARTS = """
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px;
  font-family: inherit;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis {
  stroke: var(--soft); stroke-width: 1; }
svg .track { fill: var(--shade); } svg .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
svg .curve { stroke: var(--k); stroke-width: 2; fill: none; } svg .mark { fill: var(--k);
  stroke: var(--paper); stroke-width: 1; }
svg .band { fill: var(--k); fill-opacity: .16; } svg .cell { fill: var(--k); }
svg .bar { fill: var(--k); } svg .bar.second { fill-opacity: .35; stroke: var(--k); }
.k0 { --k: var(--c0); } .k1 { --k: var(--c1); } .k2 { --k: var(--c2); } .k3 { --k: var(--c3); }
.k4 { --k: var(--c4); } .k5 { --k: var(--c5); }
"""
BODY = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 100rem; padding: 1.5rem 1rem 3rem; background: var(--paper);
  color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.3rem;
  margin: 2.2rem 0 .6rem; padding-top: .5rem;
  border-top: 1px solid var(--line); } h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, ul, figure { margin: .5rem 0; } p, li { max-width: 46rem; } a { color: var(--c0); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0; }
.lead { font-size: 1.1rem; } .note, figcaption { color: var(--soft); font-size: .85rem; }
.figures { display: grid; gap: .8rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); align-items: start; }
figure { max-width: 38rem; break-inside: avoid; } figcaption { margin-bottom: .4rem; } figcaption strong {
  color: var(--ink); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top;
  overflow-wrap: normal; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; } tbody th { font-weight: 500;
  min-width: 8rem; }
.figure { text-align: right; } td.figure { white-space: nowrap; }
.pixels { display: block; width: 100%; height: auto; image-rendering: pixelated; } .row {
  margin: .5rem 0 .2rem; }
"""
PRINT = """
@media print { @page { margin: 14mm; } html { font-size: 10pt; } body { max-width: none; padding: 0; } nav {
  display: none; }
  .figures { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding-right: .4rem; } tbody th {
  min-width: 5rem; }
  figure { max-width: 95mm; }
  tr { break-inside: avoid; } thead { display: table-header-group; } h2, h3 { break-after: avoid; }
  svg, img, tr { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
STYLE = COLOURS + BODY + CHARTS + PRINT

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{lead}</header>
{nav}
<main>
{sections}
</main>
</body>
</html>
"""

# what neither HTML nor XML may hold, escaped or not
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
NUMERIC = re.compile(r"[<>≤≥~]? ?[-−+]?[\d.,]+(e[-+]\d+)?( ?(…|–|/) ?[\d.,]+)*( ?[^\d\s]{1,7})?$")


def text(value: object) -> Html:
    """Return whatever it is as text, safe between tags and in a double-quoted attribute."""
    return Html(html.escape(CONTROL.sub("\ufffd", str(value)), quote=True))


def joined(parts: Iterable[Html]) -> Html:
    """Return the parts one after the other; empty ones are left out."""
    return Html("\n".join(part for part in parts if part))


def anchor(title: str) -> str:
    """Return a title as an id: lower-case words and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def paragraph(value: str, style: str = "") -> Html:
    """Return a paragraph of plain text; `style` is its class in the template."""
    return Html(f'<p class="{style}">{text(value)}</p>' if style else f"<p>{text(value)}</p>")


def heading(value: str) -> Html:
    """Return a heading within a section."""
    return Html(f"<h3>{text(value)}</h3>")


def listing(items: Iterable[str]) -> Html:
    """Return a list of plain texts, or NOTHING where there are none."""
    entries = [f"<li>{text(item)}</li>" for item in items]
    return Html(f"<ul>{''.join(entries)}</ul>") if entries else NOTHING


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table; a row's first cell is its name. A column of numbers is set right; one in which no row
    has anything is left out, and so is a table of names alone."""
    used = [i for i, _ in enumerate(header) if i == 0 or any(row[i] not in ("", ABSENT) for row in rows)]
    if not rows or len(used) < min(2, len(header)):
        return NOTHING
    right = {i for i in used[1:] if all(NUMERIC.match(row[i]) or row[i] in ("", ABSENT) for row in rows)}
    style = {i: ' class="figure"' if i in right else "" for i in used}
    head = "".join(f'<th scope="col"{style[i]}>{text(header[i])}</th>' for i in used)
    cells = ["".join(f"<td{style[i]}>{text(row[i])}</td>" for i in used[1:]) for row in rows]
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{row_cells}</tr>'
        for row, row_cells in zip(rows, cells, strict=True)
    )
    return Html(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def figure(chart: Html, title: str, caption: str = "") -> Html:
    """Return a chart under its title, with what it shows and under which conditions; nothing where there is
    no chart."""
    said = f"<strong>{text(title)}</strong>{'<br />' if caption else ''}{text(caption)}"
    return Html(f"<figure><figcaption>{said}</figcaption>{chart}</figure>") if chart else NOTHING


def figures(drawn: Sequence[Html]) -> Html:
    """Return figures side by side where the page is wide enough."""
    kept = [one for one in drawn if one]
    return Html(f'<div class="figures">{joined(kept)}</div>') if kept else NOTHING


def section(title: str, *parts: Html) -> Html:
    """Return the parts under a heading of their own; nothing where every part is empty."""
    body = joined(parts)
    return (
        Html(f'<section id="{anchor(title)}"><h2>{text(title)}</h2>\n{body}\n</section>') if body else NOTHING
    )


def standalone(chart: Html, title: str) -> str:
    """Return a chart as an SVG file of its own, with a margin, light or dark as its viewer is."""
    begin = re.match(r'<svg viewBox="0 0 (\d+) ([\d.]+)"', chart)
    assert begin, "a chart begins with its size"
    width, height = (float(side) + 20 for side in begin.groups())
    size = f'width="{1.5 * width:g}" height="{1.5 * height:g}"'
    margins = (
        f"svg {{ width: {1.5 * width:g}px; height: {1.5 * height:g}px; background: var(--paper); "
        "font-family: sans-serif; }}"
    )
    head = f"<title>{text(title)}</title><style>{COLOURS}{CHARTS}{margins}</style>"
    opened = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="-10 -10 {width:g} '
        f'{height:g}"{chart[begin.end() :]}'
    )
    return opened.replace(">", f">{head}", 1) + "\n"


def page(title: str, lead: str, sections: Sequence[Html]) -> str:
    """Return the whole file. Sections that are empty are left out, of the list of contents too."""
    kept = [one for one in sections if one]
    headings = [re.match(r'<section id="([^"]*)"><h2>(.*?)</h2>', one) for one in kept]
    nav = " ".join(f'<a href="#{match[1]}">{match[2]}</a>' for match in headings if match)
    nav = f'<nav aria-label="Contents">{nav}</nav>'
    return PAGE.format(
        title=text(title),
        style=STYLE,
        lead=paragraph(lead, "lead") if lead else "",
        nav=nav,
        sections=joined(kept),
    )
