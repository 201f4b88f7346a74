"""Tables of text for people, in five forms: terminal, Markdown, CSV, LaTeX, HTML."""

import csv
import dataclasses
import html
import io

LATEX = {sign: "\\" + sign for sign in "&%_#${}"} | {sign: f"${sign}$" for sign in "|<>"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", "−": "$-$", "–": "--", "·": r"$\cdot$", "×": r"$\times$", "→": r"$\to$"}
LATEX = str.maketrans(LATEX | {"λ": r"$\lambda$", "ρ": r"$\rho$", "′": "$'$"})


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table: cells are text; `words` is the number of leading columns that hold words, which
    are aligned to the left."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: int = 1

    def show(self, console) -> None:
        """Print it on a rich console."""
        from rich.markup import escape  # a run's folder may be called [red]
        from rich.table import Table

        if self.title:  # not rich's, which is wrapped to the width of the table
            console.print(self.title, style="bold", markup=False, soft_wrap=True)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if i < self.words else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(table)

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.header, *self.rows])
        return out.getvalue()

    def markdown(self) -> str:
        def line(cells):
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        lines = [line(self.header), "| " + " | ".join(rule) + " |", *map(line, self.rows)]
        title = f"**{self.title}**\n\n" if self.title else ""
        return title + "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A table that needs the packages booktabs and graphicx."""
        header, *rows = (
            " & ".join(cell.translate(LATEX) for cell in row) + r" \\"
            for row in (self.header, *self.rows)
        )
        body = "\n".join(rows)
        columns = "l" * self.words + "r" * (len(self.header) - self.words)
        return rf"""\begin{{table}}
\caption{{{self.title.translate(LATEX)}}}
\resizebox{{\linewidth}}{{!}}{{%
\begin{{tabular}}{{{columns}}}
\toprule
{header}
\midrule
{body}
\bottomrule
\end{{tabular}}}}
\end{{table}}
"""

    def html(self) -> str:
        def line(cells, tag):
            scope = ' scope="col"' if tag == "th" else ""
            inner = ""
            for i, cell in enumerate(cells):
                kind = "" if i < self.words else ' class="n"'
                inner += f"<{tag}{kind}{scope}>{html.escape(cell)}</{tag}>"
            return f"<tr>{inner}</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        return (
            f'<p class="caption">{html.escape(self.title)}</p>\n<div class="sheet" tabindex="0">'
            f'<table aria-label="{html.escape(self.title, quote=True)}">\n'
            f"<thead>{line(self.header, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )
