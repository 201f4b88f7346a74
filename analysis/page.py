"""One HTML page that needs nothing else: sections of sentences, tables and embedded figures."""

import base64
import dataclasses
import html
import pathlib

from matplotlib.figure import Figure

from oa_jax.sheets import Sheet

from . import figures

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 88rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; border-top: 1px solid #ccc; padding-top: 1rem; }
p, ul { margin: .5rem 0; } li { margin: .2rem 0; }
nav ul { columns: 16rem; padding-left: 1.2rem; }
a { color: #00508c; }
.how { color: #444; }
.missing { border-left: 3px solid #b35900; padding: .3rem .8rem; background: #fdf6ee; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .88rem; }
.sheet, .drawing { overflow-x: auto; }
.caption { font-weight: 600; margin: 1.2rem 0 .3rem; font-size: .9rem; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.3; }
th, td { text-align: left; padding: .2rem .25rem; border-bottom: 1px solid #e4e4e4; }
td { overflow-wrap: normal; } th { overflow-wrap: anywhere; hyphens: auto; min-width: 2.4rem; }
.how, li, .missing, figcaption { max-width: 62rem; }
th { border-bottom: 2px solid #999; vertical-align: bottom; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: #00508c; margin: .5rem 0; }
@media (max-width: 640px) { img { max-width: none; width: 640px; } nav ul { columns: 1; } }
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; }
  nav { display: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .sheet { overflow: visible; } table { font-size: 7pt; }
  img { max-width: 100%; width: auto; }
}
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: how to read it, what the runs show (short: in a sentence), what is
    missing, tables, figures."""

    title: str
    how: str
    short: str = ""
    lines: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    sheets: list[Sheet] = dataclasses.field(default_factory=list)
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def tell(section: Section, out: pathlib.Path, say) -> int:
    """What a command leaves of its section: the figures as files, the rest in words. -> 0."""
    figures.save(out, section.figures)
    for line in [*section.missing, *section.lines]:
        say(line)
    for sheet in section.sheets:
        say("\n" + sheet.markdown())
    return 0


LONG, MANY = 14, 8  # tables with more rows and lists with more lines are folded


def page(title: str, lead: str, sections: list[Section]) -> str:
    """The whole page. lead: a sentence under the title, followed by the sections' short ones."""
    links = [f'<li><a href="#{s.anchor}">{html.escape(s.title)}</a></li>' for s in sections]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head><body>',
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(lead)}</p>",
        f"<section>{_list([s.short for s in sections if s.short])}</section>",
        f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>',
        "<main>",
        *map(_section, sections),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _section(section):
    parts = [f'<section id="{section.anchor}"><h2>{html.escape(section.title)}</h2>']
    parts.append(f'<p class="how">{html.escape(section.how)}</p>')
    parts += [f'<p class="missing">Missing: {html.escape(line)}</p>' for line in section.missing]
    parts.append(_list(section.lines))
    parts += [_figure(name, figure) for name, figure in section.figures.items()]
    for sheet in section.sheets:
        title = html.escape(f"{sheet.title} ({len(sheet.rows)} rows)")
        folded = f"<details><summary>{title}</summary>{sheet.html()}</details>"
        parts.append(folded if len(sheet.rows) > LONG else sheet.html())
    return "\n".join([*filter(None, parts), "</section>"])


def _list(lines):
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    if len(lines) > MANY:
        return f"<details><summary>{len(lines)} lines</summary><ul>{items}</ul></details>"
    return f"<ul>{items}</ul>" if items else ""


def _figure(name, figure):
    image = base64.b64encode(figures.render(figure, "png")).decode()
    alt = html.escape(str(figure.get_label() or name), quote=True)
    width, height = (int(160 * inches) for inches in figure.get_size_inches())
    return (
        f'<figure><div class="drawing"><img alt="{alt}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{image}"></div>'
        f"<figcaption>{alt} (figures/{name}.png, .pdf)</figcaption></figure>"
    )
