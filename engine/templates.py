"""Chat templates, which are programs of the model's maker: rendered in a process of its own, with bounds."""

import datetime
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from qlinear.errors import OptionError

# Models' own templates take some milliseconds and some megabytes.
SECONDS = 10
MOST_CHARACTERS = 10**7
MOST_MEMORY = 2**30  # beyond what this process has
ALONE = 5  # seconds more, after which the system ends what nobody has

DATE = (2026, 1, 1)  # where what is made of a text has to stay the same
Conversation = list[dict[str, str]]  # messages: role and content
# Messages in, the prompt that the model's chat template makes of them out.
Render = Callable[[list[dict[str, str]]], str]

OUT_OF_MEMORY = 9  # how the other process ends then: there may be no room to send anything

_BEGIN = "`chat`: the model's chat template"
_END = "mend it, or use `chat=False`"


def has_template(tokenizer: Any) -> bool:
    """Whether there is one that `render` takes."""
    template = tokenizer.chat_template
    return "default" in template if isinstance(template, dict) else bool(template)


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The prompt that the tokenizer's chat template makes of messages, up to where the answer is to begin.

    Raises `OptionError` where there is no template, none called default among several, or it fails or has no end.
    """
    template = tokenizer.chat_template
    if not template:
        raise OptionError("`chat`: this model's tokenizer has no chat template; use `chat=False`")
    if isinstance(template, dict) and "default" not in template:
        names = ", ".join(sorted(map(str, template)))
        raise OptionError(f"`chat`: the model has chat templates {names}, but none is called default; use `chat=False`")
    return _apart(_answer, tokenizer, messages)


def render_whole(tokenizer: Any, conversations: Sequence[Conversation]) -> list[str | None]:
    """What the tokenizer's chat template makes of conversations that are at their end; None of one that it refuses.

    To templates that look at the date it is always the same one. Raises `OptionError` as `render` does.
    """
    return _apart(_answer_whole, tokenizer, conversations)


def _apart(answer: Callable[[Connection, Any, Any], None], tokenizer: Any, asked: Any) -> Any:
    """What a function sends from a process of its own. Raises `OptionError`."""
    context = _processes()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=answer, args=(sender, tokenizer, asked), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            raise OptionError(f"{_BEGIN} takes more than {SECONDS} seconds; {_END}")
        made, failed = receiver.recv()
    except EOFError:
        child.join()
        spent = f"takes more than {MOST_MEMORY / 2**30:g} GiB of memory"
        made, failed = None, spent if child.exitcode == OUT_OF_MEMORY else "ended the process that it ran in"
    finally:
        child.kill()
        child.join()
        with suppress(ValueError):  # that it runs still: where SIGCHLD is ignored nobody is told of its end
            child.close()
        receiver.close()
    if failed is not None:
        raise OptionError(f"{_BEGIN} {failed}; {_END}")
    return made


def _processes() -> Any:
    """Copies of this process, where there is such a thing: they have the tokenizer, and need not load anything."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if "fork" in methods else "spawn")


class Renderer:
    """`render` for a process of many threads: a copy of one that may hold a lock then could wait for it for ever.

    So there is a helper, made while this process has no threads that matter; it has a thread alone, and makes the
    processes that templates are rendered in. It ends with `close`, or with this process, however that ends.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._start()

    def __call__(self, messages: list[dict[str, str]]) -> str:
        """Raises `OptionError` as `render` does; from any thread, one text at a time."""
        with self._lock:
            try:
                made, failed = self._ask(messages)
            except (EOFError, OSError):  # somebody ended it
                self.close()
                self._start()
                made, failed = self._ask(messages)
        if failed is not None:
            raise OptionError(failed)
        return made

    def close(self) -> None:
        self._pipe.close()
        self._helper.kill()
        self._helper.join()
        with suppress(ValueError):
            self._helper.close()

    def _start(self) -> None:
        context = _processes()
        self._pipe, theirs = context.Pipe()
        self._helper = context.Process(target=_help, args=(theirs, self._pipe, self._tokenizer))
        self._helper.start()
        theirs.close()

    def _ask(self, messages: list[dict[str, str]]) -> tuple[str | None, str | None]:
        self._pipe.send(messages)
        return self._pipe.recv()


def _help(pipe: Connection, others: Connection, tokenizer: Any) -> None:
    """In the helper: answer until there is nobody to answer."""
    others.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for whoever asks; that one tells by closing the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import jinja2.sandbox  # noqa: F401  once, and not in each process that renders

    try:
        while True:
            messages = pipe.recv()
            try:
                pipe.send((render(tokenizer, messages), None))
            except OptionError as error:
                pipe.send((None, str(error)))
    except (EOFError, OSError):
        os._exit(0)  # what the process that this is a copy of does when it ends is not this one's to do


def _answer_whole(sender: Connection, tokenizer: Any, conversations: Sequence[Conversation]) -> None:
    """In the other process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    made = []
    try:
        _bound()
        _stop_the_clock()
        for messages in conversations:
            try:
                made.append(tokenizer.apply_chat_template(messages, tokenize=False))
            except MemoryError:
                raise
            except Exception:  # whatever a program may raise
                made.append(None)
        sender.send((made, None))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _stop_the_clock() -> None:
    """For templates that `transformers` renders in this process; it hands them a function for the date."""
    from transformers.utils import chat_template_utils

    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Still":
            return cls(*DATE, tzinfo=tz)

    chat_template_utils.datetime = Still


def _answer(sender: Connection, tokenizer: Any, messages: list[dict[str, str]]) -> None:
    """In the other process: what is made, or in words what went wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what is to be said is sent
    try:
        _bound()
        made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if len(made) > MOST_CHARACTERS:
            sender.send((None, f"makes {len(made)} characters of a prompt, more than {MOST_CHARACTERS}"))
        else:
            sender.send((made, None))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception as error:  # whatever a program may raise
        said = " ".join(str(error).split())[:300]
        sender.send((None, f"cannot be used: {type(error).__name__}{said and f': {said}'}"))


def _bound() -> None:
    """Of memory, where the system says how much is in use; of time too, should nobody be left to end it."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except (ImportError, OSError):
        return
    for what, bound in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + MOST_MEMORY),
        (resource.RLIMIT_CPU, int(SECONDS) + ALONE),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
