"""A conversation with a model: what was said is kept, and of each turn only what is new is read."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.drafting import Drafted
from engine.generate import generate, greedy, pace_ms
from engine.stopping import Ended, StopTexts
from engine.templates import template_of
from engine.text import answering, check_unicode
from engine.thoughts import thinking_of
from qlinear.errors import OptionError

if TYPE_CHECKING:
    from engine.model import Model

Message = dict[str, str]

# Of the context: room that an answer is to have before it, and what is kept when turns have to leave, so that not every
# turn after that makes others leave and has all of it read again.
FOR_AN_ANSWER, KEPT = 1 / 4, 1 / 2


@dataclass(frozen=True)
class Limits:
    """Of one answer. stop: texts at which it ends, which are no part of it."""

    max_new_tokens: int
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Turn:
    """What was said and answered.

    prompt_tokens: of all that the model has before it as it begins to answer; read_tokens: how many of those it had not
    read before; left: turns that left before it for want of room; ttft_ms: prompt in to first token out; ms_per_token:
    of those after it (see `engine.generate.pace_ms`), None if there is none; draft: None where nothing proposes tokens;
    thought: what was thought before the answer, of which the conversation keeps nothing.
    """

    prompt: str
    response: str
    prompt_tokens: int
    read_tokens: int
    new_tokens: int
    left: int
    ttft_ms: float
    ms_per_token: float | None
    ended: Ended
    draft: Drafted | None = None
    thought: str = ""


class Conversation:
    """turns: what the model has before it, (prompt, response) each; gone: those that left it for want of room, oldest
    first; context: the most tokens of it, and of the answer.

    Its decoder keeps what it has read: a turn that begins as the text before it did is read from where they differ.
    """

    def __init__(self, model: "Model", context: int, choose: Callable[[Any], int] = greedy, system: str | None = None):
        """Raises `OptionError` for a system text that the model's template does not take."""
        self.model, self.context, self.choose = model, context, choose
        self.turns: list[tuple[str, str]] = []
        self.gone: list[tuple[str, str]] = []
        self.system = None
        self.set_system(system)
        self.decoder = model.decoder(context, rewinds=True)
        self.draft = model.draft(self.decoder)
        self.read: list[int] = []  # the text that the decoder was given last, and has read as far as `known`
        self.known = 0

    def set_system(self, text: str | None) -> None:
        """What the model is told before everything else. Raises `OptionError` if its template does not take it."""
        if text is not None:
            self.model.encode_chat([_message("system", text), _message("user", "?")])
        self.system = text

    @property
    def messages(self) -> list[Message]:
        return self._messages(self.turns)

    @property
    def whole(self) -> list[Message]:
        """All that was said, what the model has no room for too."""
        return self._messages(self.gone + self.turns)

    def _messages(self, turns: Sequence[tuple[str, str]]) -> list[Message]:
        said = [] if self.system is None else [_message("system", self.system)]
        for prompt, response in turns:
            said += [_message("user", prompt), _message("assistant", response)]
        return said

    def restore(self, system: str | None, turns: list[tuple[str, str]]) -> None:
        """Go on from what was said elsewhere. Raises `OptionError` as `set_system` does."""
        self.set_system(system)
        self.turns, self.gone = turns, []

    def reset(self) -> None:
        """Forget every turn; the system text stays."""
        self.turns, self.gone = [], []

    def reply(self, prompt: str, limits: Limits) -> "Reply":
        """The answer to a prompt, to be written as it is iterated over; the oldest turns leave if they have to.

        Raises `OptionError` for a prompt that is empty, or too long for the context on its own.
        """
        before, stop = self.turns, StopTexts(limits.stop)
        tokens = self._encoded(0, prompt)
        left = 0
        if len(tokens) + min(limits.max_new_tokens, int(self.context * FOR_AN_ANSWER)) > self.context:
            most = int(self.context * KEPT)
            fits = bisect_left(range(1, len(before)), True, key=lambda count: len(self._encoded(count, prompt)) <= most)
            left = min(fits + 1, len(before))
            tokens = self._encoded(left, prompt)
        if len(tokens) >= self.context:
            raise OptionError(
                f"the message and what stands around it have {len(tokens)} tokens, which leaves no room for an answer "
                f"in `context={self.context}`; shorten it"
            )
        self.turns, self.gone = before[left:], self.gone + before[:left]
        return Reply(self, prompt, tokens, left, limits.max_new_tokens, stop)

    def _encoded(self, left: int, prompt: str) -> Any:
        """Token ids `(length,)` of what there is without the oldest `left` turns, and a prompt."""
        system = 0 if self.system is None else 1
        said = self.messages
        return self.model.encode_chat(said[:system] + said[system + 2 * left :] + [_message("user", prompt)])


class Reply:
    """An answer on its way. Iterated over once: its pieces, one a token, empty where no character is complete yet.

    Whoever has heard enough stops iterating. `end` puts what was written into the conversation, whatever ended it.
    thinking: whether the last piece was of what the model thinks before it answers.
    """

    def __init__(self, talk: Conversation, prompt: str, tokens: Any, left: int, max_new_tokens: int, stop: StopTexts):
        """tokens: ids `(length,)` of all that is before the answer; left: turns that are not, any more."""
        self.prompt, self.prompt_tokens, self.left = prompt, len(tokens), left
        self._talk, self._tokens, self._stop = talk, tokens, stop
        self._ids = tokens.tolist()
        self._known = min(_in_common(talk.read[: talk.known], self._ids), len(tokens) - 1)
        self.read_tokens = len(tokens) - self._known
        self._room = min(max_new_tokens, talk.context - len(tokens))
        self._cut = Ended.LENGTH if self._room == max_new_tokens else Ended.CONTEXT
        self._parts: list[str] = []
        self._thought: list[str] = []
        self.thinking = False
        self._seconds: list[float] = []
        self._ended = Ended.INTERRUPTED
        self._drafting = talk.draft and talk.draft.for_text()

    def __iter__(self) -> Iterator[str]:
        talk, model = self._talk, self._talk.model
        tokenizer, last = model.tokenizer, None
        how = thinking_of(template_of(tokenizer), self._tokens, tokenizer)
        marks = {*self._stop.texts, *(() if how is None else how.marks)}
        pieces = answering(tokenizer, self._ids, chat=True, marks=marks)
        thoughts = None if how is None else how.reader()
        adjust = model.rules.for_text(self.prompt_tokens, self._room)
        talk.read, talk.known = self._ids, 0  # while the decoder reads, an interrupt may leave anything in it
        written = generate(
            talk.decoder, self._tokens, self._room, model.end_tokens, talk.choose, adjust,
            known=self._known, drafting=self._drafting,
        )  # fmt: skip
        for token in written:
            talk.known = known = len(talk.read)
            talk.read.append(token.id)
            last = token.id
            self._seconds.append(token.seconds)
            yield from self._said(thoughts, self._stop.add(pieces.add(token.id)))
            if self._stop.found:
                break
            talk.known = 0
        talk.known = known
        if not self._stop.found:
            yield from self._said(thoughts, self._stop.add(pieces.end()) + self._stop.end())
        if thoughts is not None:
            yield from self._told(*thoughts.end())
        self._ended = Ended.END if last in model.end_tokens else self._cut
        if self._stop.found:
            self._ended = Ended.STOP

    def _said(self, thoughts: Any, piece: str) -> Iterator[str]:
        return self._told(*("", piece) if thoughts is None else thoughts.add(piece))

    def _told(self, thought: str, answer: str) -> Iterator[str]:
        if thought:
            self.thinking = True
            self._thought.append(thought)
            yield thought
        if answer or not thought:
            self.thinking = self.thinking and not answer
            self._parts.append(answer)
            yield answer

    def end(self) -> Turn | None:
        """The turn as it is now part of the conversation; None, and no turn, where not one token was written.

        For nothing, no turn has to leave.
        """
        if not self._seconds:
            talk = self._talk
            stay = len(talk.gone) - self.left
            talk.turns, talk.gone, self.left = talk.gone[stay:] + talk.turns, talk.gone[:stay], 0
            return None
        response = "".join(self._parts)
        self._talk.turns.append((self.prompt, response))
        drafted = self._drafting and self._drafting.drafted
        return Turn(
            self.prompt,
            response,
            self.prompt_tokens,
            self.read_tokens,
            len(self._seconds),
            self.left,
            self._seconds[0] * 1e3,
            pace_ms(self._seconds[1:], drafted),
            self._ended,
            drafted,
            "".join(self._thought),
        )


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginnings on."""
    least = min(len(first), len(second))
    return next((index for index in range(least) if first[index] != second[index]), least)


def read_messages(messages: object) -> tuple[str | None, list[tuple[str, str]]]:
    """The system text and the turns of messages, whoever made them. Raises `OptionError`."""
    if not isinstance(messages, list):
        raise OptionError("there is no list of messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise OptionError(f"message {number} has no `role` and `content` of text")
        check_unicode(message["content"], f"message {number}")
    roles = [message["role"] for message in messages]
    system = roles[:1] == ["system"]
    for number, role in enumerate(roles[system:]):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            raise OptionError(f"message {number + system + 1} is of {role!r} where one of {wanted!r} has to be")
    if (len(messages) - system) % 2:
        raise OptionError("the last message has no answer")
    texts = [message["content"] for message in messages]
    said = texts[system:]
    return texts[0] if system else None, list(zip(said[::2], said[1::2], strict=True))
