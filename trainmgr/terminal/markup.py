"""Our markup, and text from elsewhere in it, letter by letter."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from trainmgr.base.foreign import on_terminal

_HIDE = {ord("["): "\ue000", ord("\\"): "\ue001"}  # characters for private use: none is left in a clean text
_SHOW = {ord(hidden): shown for shown, hidden in (("[", "\ue000"), ("\\", "\ue001"))}


def quoted(text: str) -> str:
    """Text from elsewhere within markup of ours, for ``marked`` alone: no part of it can begin, end or close a tag."""
    return on_terminal(text).translate(_HIDE)


def marked(markup: str) -> Text:
    """Our markup, with what is ``quoted`` in it letter by letter."""
    text = Text.from_markup(markup, emoji=False)
    text.plain = text.plain.translate(_SHOW)
    return text


def say(console: Console, text: str, style: str | None = None) -> None:
    """One line of words in our markup: not wrapped where nobody reads it on a screen, never coloured by guesswork."""
    console.print(marked(text), style=style, highlight=False, soft_wrap=not console.is_terminal)


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


class Grid(Table):
    """Columns without lines; headers and cells are our markup, with the rest ``quoted``."""

    def __init__(self, *columns: str) -> None:
        super().__init__(box=None, padding=(0, 2), header_style="dim")
        for column in columns:
            self.add_column(marked(column), overflow="fold")

    def row(self, *cells: str) -> None:
        self.add_row(*map(marked, cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Where nothing is to be folded, line by line: rich itself takes ten times as long for it."""
        columns = [[_text(cell) for cell in (column.header, *column.cells)] for column in self.columns]
        lengths = [[cell.cell_len for cell in column] for column in columns]
        widths = [max(column) for column in lengths]
        lines = any("\n" in cell.plain for column in columns for cell in column)
        if lines or sum(widths) + 4 * len(widths) > options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for number in range(len(columns[0])):
            line = Text(style=self.header_style if number == 0 else "")
            for column, length, width in zip(columns, lengths, widths, strict=True):
                line.append("  ").append_text(column[number]).append(" " * (width - length[number] + 2))
            yield from line.render(console, end="\n")
