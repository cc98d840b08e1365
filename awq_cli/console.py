"""The terminal: what a task tells while it runs, as it is told."""

import re
import time
from typing import Any

from rich.color import ColorSystem
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.style import Style

from awq_cli import tables
from awq_cli.answering import Answering, Piece, Response
from awq_cli.layout import passes
from awq_cli.spelling import as_options, printable
from awq_cli.tasks.chat import Opened, Told, Words
from awq_cli.tasks.serve import Serving
from engine.conversation import Turn
from engine.stopping import Ended
from qlinear.progress import Note, Step

# Characters that a terminal does something with, but for ends of lines and tabs.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DIM = Style(dim=True)
UNSHOWN = "\N{REPLACEMENT CHARACTER}"


class Terminal(RichConsole):
    """Rich ends the program by itself where a pipe is closed; here that is for `awq_cli.ending` to do."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


# Seconds between two lines of progress where there is no terminal to move a bar on.
LOG_EVERY = 30


class Console:
    """Watches a task and shows its result.

    Answers and results go to standard output; notes and progress to standard error, so that output can be piped, and
    nowhere if `quiet`. On a terminal an answer is shown as it is written.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.out = Terminal(highlight=False, emoji=False)
        self.err = Terminal(stderr=True, highlight=False, emoji=False, quiet=quiet)
        self._progress = _MovingBar(self.err) if self.err.is_terminal and not quiet else _Lines(self.err)
        self._writing = False  # in the middle of a line of an answer
        self._thinking = False
        self._answer: list[str] = []
        self._shows = {
            Note: self._note,
            Step: self._step,
            Answering: self._answering,
            Piece: self._piece,
            Response: self._response,
            Opened: self._opened,
            Words: self._words,
            Turn: self._turn,
            Told: self._told,
            Serving: self._serving,
        }

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_) -> None:
        self._progress.close()
        if self._writing:
            self._write("\n")

    @property
    def is_watched(self) -> bool:
        """Whether somebody sits there, and wants to see more than was asked for."""
        return self.out.is_terminal and not self.err.quiet

    def watch(self, event: Any) -> None:
        self._shows[type(event)](event)

    def show(self, result: Any) -> None:
        tables.show(self.out, result)

    def _note(self, note: Note) -> None:
        self.err.print(f"note: {printable(as_options(note.text))}", markup=False, soft_wrap=True)

    def _step(self, step: Step) -> None:
        self._progress.show(step)

    def _answering(self, begun: Answering) -> None:
        """The original command's layout."""
        self.out.print("*" * min(40, self.out.width))
        self.out.print(f"prompt: {begun.prompt}", markup=False, soft_wrap=True)
        self._answer = [f"response: {begun.prompt if begun.continued else ''}"]
        if self.out.is_terminal:
            self._writing = True
            self._write(self._answer[0])

    def _piece(self, piece: Piece) -> None:
        self._answer.append(piece.text)
        if self.out.is_terminal:
            self._write(piece.text)

    def _response(self, response: Response) -> None:
        if self.out.is_terminal:
            self._writing = False
            self._write("\n")
        else:
            self.out.print("".join(self._answer), markup=False, soft_wrap=True)

    def _opened(self, opened: Opened) -> None:
        if self.out.is_terminal:
            self.out.print(f"{opened.model} on {opened.backend}, context {opened.context}", markup=False)
            self.out.print("/help lists commands, ^D leaves")

    def _words(self, words: Words) -> None:
        """On a terminal what is thought is dimmer than the answer; elsewhere the answer alone is wanted."""
        self._writing = True
        if words.thought:
            if self.out.is_terminal:
                shown = CONTROLS.sub(UNSHOWN, words.text)
                dims = ColorSystem.STANDARD if self.out.color_system else None
                self.out.file.write(DIM.render(shown, color_system=dims))
                self.out.file.flush()
        else:
            self._write("\n\n" + words.text if self._thinking and self.out.is_terminal and words.text else words.text)
        self._thinking = words.thought or (self._thinking and not words.text)

    def _turn(self, turn: Turn) -> None:
        """The end of an answer, with its figures."""
        self._writing = self._thinking = False
        self._write("\n")
        rate = f", {1e3 / turn.ms_per_token:,.1f} tokens/s" if turn.ms_per_token else ""
        rate += f", {passes(turn.draft)}" if turn.draft else ""
        how = ", cut by ^C" if turn.ended is Ended.INTERRUPTED else ""
        self.err.print(f"[{turn.new_tokens} tokens{rate}, first after {turn.ttft_ms / 1e3:.2f} s{how}]", markup=False)

    def _told(self, told: Told) -> None:
        self.out.print(CONTROLS.sub(UNSHOWN, told.text), markup=False)

    def _serving(self, serving: Serving) -> None:
        at_once = "one answer at a time" if serving.slots == 1 else f"{serving.slots} answers at once"
        self.out.print(
            f"{serving.model} on {serving.backend}, {at_once}, context {serving.context}: {serving.address}/v1",
            markup=False,
            soft_wrap=True,
        )
        self.out.file.flush()

    def _write(self, text: str) -> None:
        """At once, and as it is: no markup, no wrapping; but a model has nothing to say to a terminal's controls."""
        self.out.file.write(CONTROLS.sub(UNSHOWN, text) if self.out.is_terminal else text)
        self.out.file.flush()


class _MovingBar:
    def __init__(self, terminal: Terminal):
        self._terminal = terminal
        self._bar: Bar | None = None
        self._task: Any = None

    def show(self, step: Step) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._terminal,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(step.what, total=step.total)
        self._bar.update(self._task, completed=step.done)
        if step.done == step.total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


class _Lines:
    """One line in a while."""

    def __init__(self, terminal: Terminal):
        self._terminal = terminal
        self._start = self._last = time.monotonic()

    def show(self, step: Step) -> None:
        now = time.monotonic()
        if step.done == 0:
            self._start = self._last = now
        elif step.done < step.total and now - self._last >= LOG_EVERY:
            self._last, elapsed = now, now - self._start
            left = elapsed / step.done * (step.total - step.done)
            self._terminal.print(
                f"note: {step.what} {step.done}/{step.total} after {elapsed:.0f} s, {left:.0f} s left", soft_wrap=True
            )

    def close(self) -> None: ...
