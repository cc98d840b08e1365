"""Talk with a model, a turn at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from awq_cli.lines import Lines, open_lines
from awq_cli.running import ModelRequest, ModelResult, described, open_model
from awq_cli.tasks.decode import Writing, read_prompt
from engine.conversation import Conversation, Limits, Turn, read_messages
from engine.model import Model
from engine.stopping import Ended, StopTexts
from engine.templates import has_template
from qlinear.errors import AwqError, OptionError, one_line
from qlinear.files import write_text_whole
from qlinear.progress import Note, Watcher
from quantization.texts.files import read_file

# A model's own context may be so long that a cache for it has no room.
MOST_CONTEXT = 8192
MOST_NEW_TOKENS = 1024

HELP = """/reset        forget what was said
/system TEXT  what the model is told first; alone: nothing
/save FILE    write the conversation to a file
/load FILE    go on from such a file
/stats        tokens, speed and room
/quit         leave, as ^D does
^C ends an answer. Alt+Enter begins a new line.
A space before a slash sends it to the model."""


@dataclass(frozen=True)
class Request(ModelRequest):
    system: str | None
    context: int | None
    writing: Writing
    draft: str | None


@dataclass(frozen=True)
class Result(ModelResult):
    """turns: all that was said and answered, whatever the model has before it in the end; system: in the end."""

    context: int
    system: str | None
    turns: list[Turn]


@dataclass(frozen=True)
class Opened:
    """Told of before the first turn."""

    model: str
    backend: str
    context: int


@dataclass(frozen=True)
class Words:
    """Some more of an answer, or of what is thought before it: whole characters."""

    text: str
    thought: bool = False


@dataclass(frozen=True)
class Told:
    """What a command comes to: lines of the program's own."""

    text: str


def run(request: Request, watch: Watcher) -> Result:
    writing = request.writing
    StopTexts(writing.stop)
    system = None if request.system is None else read_prompt(request.system, "system")
    model = open_model(request, watch, request.draft)
    if not has_template(model.tokenizer):
        raise OptionError(
            "`task=chat`: this model's tokenizer has no chat template, so that it cannot hold a conversation; have it "
            "go on with a text: `task=decode`"
        )
    context = _context(request, model)
    talk = Conversation(model, context, writing.chooser(), system)
    limits = Limits(writing.max_new_tokens or MOST_NEW_TOKENS, writing.stop)
    notes = model.rules.notes
    watch(Opened(model.about.checkpoint or model.about.name, model.about.code, context))
    with open_lines(lambda text: watch(Told(text))) as lines:
        session = _Session(talk, limits, lines, watch)
        session.run()
    return Result(**described("chat", request, model, notes), context=context, system=talk.system, turns=session.turns)


def _context(request: Request, model: Model) -> int:
    if request.context is None:
        return min(MOST_CONTEXT, model.max_positions or MOST_CONTEXT)
    model.check_fits(request.context, "conversations of `context`")
    return request.context


class _Session:
    def __init__(self, talk: Conversation, limits: Limits, lines: Lines, watch: Watcher):
        self.talk, self.limits, self.lines, self.watch = talk, limits, lines, watch
        self.turns: list[Turn] = []
        self.commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: HELP,
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
        }

    def run(self) -> None:
        while (line := self.lines.read()) is not None:
            name, *rest = line.split(maxsplit=1)
            is_command = line.startswith("/") and name[1:].isalpha()
            if is_command and name == "/quit":
                return
            try:
                if is_command:
                    self.watch(Told(self._command(name, "".join(rest).strip())))
                else:
                    self._answer(line)
            except AwqError as error:
                self.lines.refused(error)

    def _command(self, name: str, rest: str) -> str:
        if name not in self.commands:
            raise OptionError(f"there is no {name}; /help lists what there is")
        return self.commands[name](rest)

    def _answer(self, line: str) -> None:
        with self.lines.answering() as stop:
            reply = self.talk.reply(line, self.limits)
            if reply.left:
                oldest = "the oldest turn has" if reply.left == 1 else f"the oldest {reply.left} turns have"
                self.watch(Note(f"{oldest} left: a `context={self.talk.context}` has no room for more"))
            stop.reading = not stop.asked
            for piece in reply if stop.reading else ():
                stop.reading = False
                self.watch(Words(piece, reply.thinking))
                if stop.asked:
                    break
        turn = reply.end()
        if turn is None:
            self.watch(Told("\nnothing was written, so nothing was said"))
            return
        self.turns.append(turn)
        self.watch(turn)
        if turn.ended is Ended.LENGTH:
            self.watch(Note(f"the answer was cut at `max_new_tokens={self.limits.max_new_tokens}`"))
        if turn.ended is Ended.CONTEXT:
            self.watch(Note(f"the answer was cut: a `context={self.talk.context}` has no room for more"))

    def _reset(self, _: str) -> str:
        self.talk.reset()
        return "forgotten; the system text stays" if self.talk.system else "forgotten"

    def _system(self, text: str) -> str:
        self.talk.set_system(text or None)
        return "the model is told so from now on" if text else "the model is told nothing first from now on"

    def _save(self, name: str) -> str:
        path, messages = _file("/save", name), self.talk.whole
        if path.is_file():
            try:
                _messages(path)
            except OptionError as error:
                raise OptionError(f"{path} is there already and no conversation; give another name") from error
        content = json.dumps({"model": self.talk.model.about.name, "messages": messages}, ensure_ascii=False, indent=2)
        try:
            write_text_whole(path, content + "\n")
        except OSError as error:
            raise OptionError(f"{path} cannot be written: {error.strerror}") from error
        return f"saved in {path}: {_count(len(self.talk.gone) + len(self.talk.turns), 'turn')}"

    def _load(self, name: str) -> str:
        path = _file("/load", name)
        self.talk.restore(*_messages(path))
        return f"{_count(len(self.talk.turns), 'turn')} from {path}"

    def _stats(self, _: str) -> str:
        talk, written = self.talk, sum(turn.new_tokens for turn in self.turns)
        pace = [turn.ms_per_token for turn in self.turns if turn.ms_per_token]
        speed = f", {1e3 / median(pace):,.1f} tokens/s" if pace else ""
        read = sum(turn.read_tokens for turn in self.turns)
        return (
            f"{_count(len(self.turns), 'answer')}: {read} tokens read, {written} written{speed}\n"
            f"context: {_count(len(talk.turns), 'turn')}, {talk.known} of {talk.context} tokens\n"
            f"system text: {talk.system or 'none'}"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _file(command: str, name: str) -> Path:
    if not name:
        raise OptionError(f"{command} needs the name of a file")
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or of a user that there is not
        raise OptionError(f"{command} {name}: {one_line(error)}") from error
    return path


def _messages(path: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The system text and the turns in a file. Raises `OptionError`."""
    try:
        content = json.loads(read_file(path, str(path), OptionError))
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not JSON: {one_line(error)}") from error
    try:
        return read_messages(content.get("messages") if isinstance(content, dict) else None)
    except OptionError as error:
        raise OptionError(f"{path} holds no conversation: {error}") from error
