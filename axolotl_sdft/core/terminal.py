"""What commands show while they run and when they end: progress, tables, and paragraphs, laid out by ``rich``.

Tables and paragraphs are plain lines of text, without colours, and columns are counted in the cells that a character
takes. On a terminal they fit its width. In a pipe or a file, a row of a table is one line, however long.
"""

import io
import logging
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO, cast

from rich import box
from rich import progress as bars
from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.table import Column, Table
from rich.text import Text

from axolotl_sdft.core.runtime import rank
from axolotl_sdft.core.texts import duration, one_line, printable

LINE_WIDTH = 100
"""Columns that a paragraph takes at most."""

_LOG_INTERVAL_S = 30.0
_CELL_INTERVAL_S = 0.5
_SPEED_WINDOW_S = 3600.0
_ENDLESS = 100_000
_JUSTIFY: dict[str, Any] = {"l": "left", "r": "right"}


def terminal_width() -> int | None:
    """Return the columns of the terminal that shows standard output; None where it is a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str, *, gap: int = 2, width: int | None = None
) -> Iterator[str]:
    """Yield a table line by line; a cell may hold line breaks.

    Args:
        header: Titles of the columns; all empty: no line of titles.
        rows: As many cells in each.
        align: ``l`` or ``r`` for each column.
        gap: Blanks between columns.
        width: Columns of a terminal that it must fit; unset, that of standard output. Cells are wrapped to fit.
    """
    columns = [
        Column(Text(_cell(title)), justify=_JUSTIFY[letter], overflow="fold")
        for title, letter in zip(header, align, strict=True)
    ]
    table = Table(*columns, box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=any(header))
    for row in rows:
        table.add_row(*(Text(_cell(cell)) for cell in row))
    yield from _rendered(table, width or terminal_width() or _ENDLESS)


def fact_lines(facts: Iterable[tuple[str, str]], *, label_width: int = 0, width: int | None = None) -> Iterator[str]:
    """Yield facts as two columns, each with its label on the left.

    Args:
        facts: Labels and what there is to say.
        label_width: Least columns of the labels.
        width: As for :func:`table_lines`.
    """
    columns = [Column(min_width=label_width, no_wrap=True), Column(overflow="fold")]
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for label, fact in facts:
        table.add_row(Text(_cell(label)), Text(_cell(fact)))
    yield from _rendered(table, width or terminal_width() or _ENDLESS)


def side_by_side(left: str, right: str, width: int) -> Iterator[str]:
    """Yield two texts of several lines beside each other, in columns of the same width with a bar between them."""
    column = (width - 3) // 2
    columns = [Column(width=column, overflow="fold"), Column(width=column, overflow="fold")]
    table = Table(*columns, box=box.ASCII, show_edge=False, show_header=False, pad_edge=False)
    table.add_row(Text(_cell(left)), Text(_cell(right)))
    yield from _rendered(table, width)


def paragraph_lines(text: str) -> list[str]:
    """Return a text in lines of at most 100 columns, or as many as the terminal has, those after the first indented."""
    width = min(terminal_width() or LINE_WIDTH, LINE_WIDTH)
    return textwrap.wrap(one_line(text), width, subsequent_indent="  ", break_on_hyphens=False)


def _cell(text: str) -> str:
    return printable(text).expandtabs(4)


def _console(width: int) -> Console:
    # Nothing of the environment plays a part, neither colours that it asks for nor a notebook around it.
    return Console(
        file=io.StringIO(), width=width, color_system=None, force_terminal=False, force_jupyter=False, _environ={}
    )


def _rendered(renderable: RenderableType, width: int) -> Iterator[str]:
    console = _console(width)
    for line in console.render_lines(renderable, pad=False):
        yield "".join(segment.text for segment in line).rstrip()


class Progress:
    """A bar with rate and time left on a terminal, a line of text in a notebook, log lines elsewhere.

    Nothing on other ranks.
    """

    def __init__(self, description: str, total: int, unit: str, log: logging.Logger) -> None:
        self._unit, self._log = unit, log
        self._is_main = rank() == 0
        self._screen = _Screen.shown() if self._is_main else None
        self._bars = self._screen.bars if self._screen is not None else _new_bars(disable=True)
        self._task = self._bars.add_task(one_line(description), total=total, unit=unit, figures="")
        self._bars.advance(self._task, 0)  # the rate counts from here
        self._last_log = time.monotonic()
        self._cell = _notebook_display() if self._is_main and self._screen is None else None
        self._handle: Any = None
        self._show_in_cell({}, 0.0)

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """Count work as done; ``figures`` are shown beside it."""
        self._bars.update(self._task, figures=" ".join(f"{name}={value}" for name, value in figures.items()))
        self._bars.advance(self._task, count)
        if self._cell is not None:
            self._show_in_cell(figures, _CELL_INTERVAL_S)
        elif self._screen is None and self._is_main and time.monotonic() - self._last_log >= _LOG_INTERVAL_S:
            self._last_log = time.monotonic()
            self._log_line(figures)

    def _log_line(self, figures: dict[str, float | str]) -> None:
        self._log.info("%s", self._line(figures))

    def _line(self, figures: dict[str, float | str]) -> str:
        task = self._state()
        said = [_rate(task), _time_left(task), *(f"{name} {value}" for name, value in figures.items())]
        shown = "".join(f", {what}" for what in said if what)
        return f"{task.description}: {task.completed:.0f} of {task.total:.0f} {self._unit}{shown}"

    def _show_in_cell(self, figures: dict[str, float | str], interval_s: float) -> None:
        """Write the line of a notebook's cell anew, unless that has just been done."""
        if self._cell is None or (self._handle is not None and time.monotonic() - self._last_log < interval_s):
            return
        self._last_log = time.monotonic()
        content = {"text/plain": self._line(figures)}
        if self._handle is None:
            self._handle = self._cell(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def close(self) -> None:
        """Finish the bar, or log how long all of it took."""
        task = self._state()
        self._bars.stop_task(self._task)
        if self._screen is not None:
            self._screen.leave()
        elif self._cell is not None:
            self._show_in_cell({}, 0.0)
        elif self._is_main and task.completed:
            self._log.info("%s: %d %s in %s", task.description, task.completed, self._unit, _elapsed(task))

    def _state(self) -> bars.Task:
        return next(task for task in self._bars.tasks if task.id == self._task)


def _notebook_display() -> Callable[..., Any] | None:
    """Return what shows something below a notebook's cell; None outside a notebook.

    Bars of rich would need ipywidgets there; a line that is written anew needs nothing but the kernel.
    """
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    if getattr(shell, "kernel", None) is None:  # a terminal
        return None
    from IPython.display import display

    return cast("Callable[..., Any]", display)


@contextmanager
def progress(description: str, total: int, unit: str, log: logging.Logger) -> Iterator[Progress]:
    """Give a :class:`Progress` that is closed when the block ends."""
    shown = Progress(description, total, unit, log)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the datasets library's own bars off the screen."""
    import datasets

    was_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_progress_bars()


@contextmanager
def tells_what_is_kept(text: Callable[[], str], log: logging.Logger) -> Iterator[None]:
    """Log, where Ctrl-C ends the block, what is kept and how to go on; on the main rank."""
    try:
        yield
    except KeyboardInterrupt:
        if rank() == 0:
            log.warning("stopped: %s", text())
        raise


class _Column(bars.ProgressColumn):
    """Text that a function tells of a task; in a narrow terminal others make room."""

    def __init__(self, text: Callable[[bars.Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._text = text

    def render(self, task: bars.Task) -> Text:
        return Text(self._text(task), no_wrap=True)


def _new_bars(console: Console | None = None, *, disable: bool = False) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=None, table_column=Column(max_width=20)),
        _Column(lambda task: f"{task.percentage:.0f} %"),
        _Column(lambda task: f"{task.completed:,.0f}/{task.total or 0:,.0f} {task.fields['unit']}"),
        _Column(_rate),
        _Column(_time_left),
        _Column(lambda task: task.fields["figures"]),
        console=console,
        refresh_per_second=4,
        speed_estimate_period=_SPEED_WINDOW_S,
        # Output that goes into a file must not come out on the terminal instead.
        redirect_stdout=sys.stdout.isatty(),
        get_time=lambda: time.monotonic(),
        disable=disable,
    )


def _rate(task: bars.Task) -> str:
    speed, unit = task.finished_speed or task.speed, task.fields["unit"]
    if not speed:
        return ""
    return f"{speed:,.{0 if speed >= 100 else 2}f} {unit}/s" if speed >= 0.1 else f"{1 / speed:,.1f} s per {_one(unit)}"


def _one(unit: str) -> str:
    return unit.removesuffix("s")


def _elapsed(task: bars.Task) -> str:
    seconds = task.elapsed or 0.0
    return duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"


def _time_left(task: bars.Task) -> str:
    if task.finished:
        return f"took {_elapsed(task)}"
    left = task.time_remaining
    return "" if left is None else f"{duration(left)} left"


class _Screen:
    """The bars that the terminal shows at present; log lines come out above them."""

    _current: "_Screen | None" = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, force_terminal=True)
        self.bars = _new_bars(self._console)
        self._num_open = 0
        self._ends = ExitStack()

    @classmethod
    def shown(cls) -> "_Screen | None":
        """Return the screen, which is shown until each caller has left it; None without a terminal."""
        with cls._lock:
            if cls._current is None:
                # Not what rich takes for a terminal: FORCE_COLOR, which many CI systems set, would write bars into log
                # files.
                if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
                    return None
                cls._current = cls()
                cls._current._begin()
            cls._current._num_open += 1
            return cls._current

    def leave(self) -> None:
        """Take the bars as finished once nobody else shows one."""
        with self._lock:
            self._num_open -= 1
            if not self._num_open:
                type(self)._current = None
                self._ends.close()

    def _begin(self) -> None:
        for handler in terminal_handlers():
            self._ends.callback(handler.setStream, handler.stream)
            handler.setStream(cast(TextIO, FileProxy(self._console, handler.stream)))
        self._ends.callback(self.bars.stop)
        self.bars.start()


def terminal_handlers() -> "list[logging.StreamHandler[TextIO]]":
    """Return the handlers of all loggers that write to a terminal; they hold its stream, so rich can't redirect it."""
    return [one for one in stream_handlers() if _holds_stream(one) and one.stream.isatty()]


def stream_handlers() -> "list[logging.StreamHandler[TextIO]]":
    """Return the handlers of all loggers that write to a stream."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [one for one in handlers if isinstance(one, logging.StreamHandler)]


def _holds_stream(handler: logging.Handler) -> bool:
    # Others, such as logging's last resort, look up sys.stderr each time, and that is redirected.
    return hasattr(vars(handler).get("stream"), "isatty")
