"""Thoughts before an answer: told apart however they come in pieces, and as OpenAI's own client reads them."""

import time

import numpy as np
import openai
import pytest

from awq_cli.serving.refusals import Refusal
from awq_cli.serving.thoughts import effort_shown, told_apart
from engine.text import answering
from engine.thoughts import MARKS, Thinking, thinking_of
from qlinear.backends.cpu import native
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_tools import ROME, USER, Speaking, called, folder  # noqa: F401

needs_kernels = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
BEGIN, END = MARKS[0].begin, MARKS[0].end
HARMONY, GEMMA = MARKS[3], MARKS[2]
# Marks of calls and of thoughts; the prompt ends within thoughts where a request asks for much.
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}{{ bos_token }}{{ m.content }}"
    "{% if '</think>' in m.content %}!{% endif %}{% endfor %}{{ bos_token }}assistant "
    "{% if reasoning_effort == 'high' %}<think>\n{% endif %}"
)
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}


@pytest.mark.parametrize(
    "begun, written, thought, answer",
    [
        (False, f"{BEGIN}\nIt is July.\n{END}\n\nWarm. ", "It is July.", "Warm. "),
        (False, f"\n {BEGIN}a {END}{BEGIN}b{END}", "a", f"{BEGIN}b{END}"),
        (False, f"{BEGIN}\n\n{END}\n\nWarm.", "", "Warm."),
        (False, f"{BEGIN} a </thin k", "a </thin k", ""),
        (False, f"{BEGIN}a </thi", "a </thi", ""),
        (False, f" 1 < 2 {END}", "", f" 1 < 2 {END}"),
        (False, "<thi", "", "<thi"),
        (False, " <thinking> a", "", " <thinking> a"),
        (False, "", "", ""),
        (True, f"\nIt\n\nis.\n{END}\n\n Warm", "It\n\nis.", "Warm"),
        (True, f"{END}Warm", "", "Warm"),
        (True, "It is ", "It is", ""),
        (True, f"{BEGIN}\nI see{END}Yes", "I see", "Yes"),
        (True, "<thi", "<thi", ""),
        (False, " " * 3000 + "a", "", " " * 3000 + "a"),
        (True, "a" + " " * 3000 + "b", "a" + " " * 3000 + "b", ""),
    ],
)
def test_pieces(begun, written, thought, answer):
    check(MARKS[0], begun, written, thought, answer)


def test_special_tokens_behind_thoughts_are_left_out():
    """Each comes as one piece."""
    reader = Thinking(GEMMA, False).reader()
    pieces = ("<|channel>", "thought", "\na", "<channel|>", "x", "<|channel>", "b", "<channel|>", "y")
    found = [reader.add(piece) for piece in pieces] + [reader.end()]
    assert tuple("".join(parts) for parts in zip(*found, strict=True)) == ("a", "xby")


START, FINAL, THOUGHT = "<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"


@pytest.mark.parametrize(
    "marks, written, thought, answer",
    [
        (HARMONY, f"{THOUGHT}It is July.<|end|>{START}{FINAL}Warm.", "It is July.", "Warm."),
        (HARMONY, f"{FINAL}Warm. ", "", "Warm. "),
        (HARMONY, f"{THOUGHT}July", "July", ""),
        (HARMONY, f"{THOUGHT}July<|end|>{START}", "July", ""),
        (HARMONY, f"{THOUGHT}July<|end|><|sta", "July", "<|sta"),
        (HARMONY, "Warm.", "", "Warm."),
        (HARMONY, f"{THOUGHT}a<|end|>{START}{THOUGHT}b<|end|>{START}{FINAL}c", "a\n\nb", "c"),
        (
            HARMONY, f"{THOUGHT}a<|end|>{START}<|channel|>commentary<|message|>I look.<|end|>{START}{FINAL}Warm.", "a",
            "I look.\n\nWarm.",
        ),
        (HARMONY, f"{THOUGHT}a{START}<|channel|>final <|constrain|>json<|message|>{{}}", "a", "{}"),
        (HARMONY, "<|channel|>" + "x" * 300, "", "x" * 300),
        (HARMONY, f"{THOUGHT}a<|end|>b c", "a", "b c"),
        (HARMONY, "<|chan", "", "<|chan"),
        (GEMMA, "<|channel>thought\nJuly\n<channel|>Warm.", "July", "Warm."),
        (GEMMA, "<|channel>other", "", "other"),
    ],
)  # fmt: skip
def test_pieces_of_channels(marks, written, thought, answer):
    check(marks, False, written, thought, answer)


CALLED = '<|channel|>commentary to=functions.now<|message|>{"a": 1}'


@pytest.mark.parametrize(
    "written, thought, answer",
    [
        (f"{THOUGHT}a<|end|>{START} to=functions.now<|channel|>commentary json<|message|>{{\"a\": 1}}", "a", CALLED),
        (f'{THOUGHT}a<|end|>{START}<|channel|>commentary to=functions.now <|constrain|>json<|message|>{{"a": 1}}', "a",
         CALLED),
        ('<|channel|>analysis to=functions.now<|message|>{"a": 1}', "", CALLED),
        (f' to=functions.now<|channel|>commentary<|message|>{{"a": 1}}<|end|>{START}{FINAL}So', "", f"{CALLED}\n\nSo"),
        (f"{FINAL}to=functions.now", "", "to=functions.now"),
        (" to=", "", "to="), ("to go", "", "to go"),
    ],
)  # fmt: skip
def test_parts_that_call(written, thought, answer):
    check(HARMONY, False, written, thought, answer, calls=True)
    assert "<|message|>" not in "".join(read_whole(Thinking(HARMONY, False).reader(), written))


def read_whole(reader, written):
    return [part for parts in (reader.add(written), reader.end()) for part in parts]


def check(marks, begun, written, thought, answer, calls=False):
    """However the answer is cut into pieces."""
    rng = np.random.default_rng(0)
    for many in range(30):
        cuts = sorted(rng.integers(0, len(written) + 1, many)) if many < 29 else range(len(written))
        pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
        reader = Thinking(marks, begun).reader(calls)
        found = [reader.add(piece) for piece in pieces] + [reader.end()]
        assert tuple("".join(parts) for parts in zip(*found, strict=True)) == (thought, answer)


def test_a_thought_is_told_as_it_is_written():
    reader = Thinking(MARKS[0], True).reader()
    assert [reader.add(piece) for piece in ("It", " is", " ", "so", "<", "/", "x")] == [
        ("It", ""), (" is", ""), ("", ""), (" so", ""), ("", ""), ("", ""), ("</x", "")
    ]  # fmt: skip


class Decoding:
    """A tokenizer, of as much as is asked of one."""

    def decode(self, tokens, skip_special_tokens):
        assert not skip_special_tokens
        return "".join(map(chr, tokens))


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.begin)
def test_marks_of_a_template(marks):
    """A template that only takes thoughts out of earlier answers tells enough."""
    begin, end = marks.begin, marks.end
    template = f"{{{{ m.content.split('{marks.told or end}')[-1] }}}}"
    over = Thinking(marks, False) if marks.parts else None  # no thoughts come: a mark would be text
    for prompt, found in (
        (f"a {begin}\n", Thinking(marks, True)), (f"a {begin}\n\n{end}\n\n", over), ("a", Thinking(marks, False))
    ):  # fmt: skip
        ids = np.array([*map(ord, "x" * 50 + prompt)])
        assert thinking_of(template, ids, Decoding()) == found
    assert thinking_of("{{ m.content }}", np.array([97]), Decoding()) is None


@pytest.mark.parametrize(
    "template, effort, seen",
    [
        ("reasoning_effort </think>", "low", {"reasoning_effort": "low"}),
        ("enable_thinking </think>", "low", {"enable_thinking": True}),
        ("enable_thinking </think>", "none", {"enable_thinking": False}),
        ("enable_thinking </think>", None, {}),
        ("enable_thinking reasoning_effort", "none", {"enable_thinking": False, "reasoning_effort": "none"}),
        ("</think>", "high", {}),
        ("plain", "none", {}),
    ],
)
def test_effort(template, effort, seen):
    assert effort_shown({"reasoning_effort": effort}, template) == seen


@pytest.mark.parametrize("template, effort", [("</think>", "none"), ("plain", "low"), ("enable_thinking", 3)])
def test_effort_that_nothing_follows(template, effort):
    with pytest.raises(Refusal, match="reasoning_effort"):
        effort_shown({"reasoning_effort": effort}, template)


def test_formats():
    assert [told_apart({"reasoning_format": one}) for one in ("auto", "none", "deepseek", None)] == [
        True, False, True, True
    ]  # fmt: skip
    with pytest.raises(Refusal, match="auto, none, deepseek"):
        told_apart({"reasoning_format": ["none"]})


@pytest.fixture(scope="module")
def speaking(folder):  # noqa: F811
    with Speaking(folder, TEMPLATE, special=True) as running:
        yield running


def streamed(chunks):
    """Thought, answer, and names of what came in the order that it came."""
    thought = answer = ""
    order: list[str] = []
    for chunk in chunks:
        delta = chunk.choices[0].delta
        more = getattr(delta, "reasoning_content", None) or ""
        thought, answer = thought + more, answer + (delta.content or "")
        for name, there in (("thought", more), ("answer", delta.content), ("call", delta.tool_calls)):
            order += [name] if there and order[-1:] != [name] else []
    return thought, answer, order


@needs_kernels
@pytest.mark.parametrize(
    "effort, said, thought, answer",
    [
        (None, "<think>\nIt is July.\n</think>\n\nWarm.", "It is July.", "Warm."),
        ("high", "It is July.\n</think>\n\nWarm.", "It is July.", "Warm."),
        (None, "Warm.", None, "Warm."),
    ],
)
def test_thoughts_and_answers(speaking, effort, said, thought, answer):
    how = {} if effort is None else {"reasoning_effort": effort}
    message = speaking.ask(said, tools=openai.omit, **how).choices[0].message
    assert (message.content, getattr(message, "reasoning_content", None)) == (answer, thought)
    assert streamed(speaking.ask(said, tools=openai.omit, stream=True, **how)) == (
        thought or "", answer, ["thought", "answer"] if thought else ["answer"]
    )  # fmt: skip


@needs_kernels
def test_a_call_that_is_only_thought_of(speaking):
    said = f"<think>I may say {ROME}.</think>{ROME}"
    message = speaking.ask(said).choices[0].message
    assert message.reasoning_content == f"I may say {ROME}."
    assert message.content is None and called(message) == [("weather", {"city": "Rome"})]
    thought, answer, order = streamed(speaking.ask(said, stream=True))
    assert (thought, answer, order) == (f"I may say {ROME}.", "", ["thought", "call"])


@needs_kernels
def test_a_thought_that_is_cut_or_stopped(speaking):
    said = "<think>It is July here and more of it.</think>Warm."
    for how, finish in (({"max_tokens": 9}, "length"), ({"stop": "July"}, "stop")):
        choice = speaking.ask(said, tools=openai.omit, **how).choices[0]
        assert choice.finish_reason == finish and choice.message.content == ""
        assert choice.message.reasoning_content and choice.message.reasoning_content in "It is July here and more"


@needs_kernels
def test_thoughts_as_they_are(speaking):
    said = "<think>\na\n</think>\n\nb"
    plain = {"extra_body": {"reasoning_format": "none"}, "tools": openai.omit}
    message = speaking.ask(said, **plain).choices[0].message
    assert message.content == said and not hasattr(message, "reasoning_content")
    assert streamed(speaking.ask(said, stream=True, **plain)) == ("", said, ["answer"])


@needs_kernels
def test_what_is_kept_to_a_form_is_no_thought(speaking):
    """Though the prompt ends within thoughts."""
    how = dict(tools=openai.omit, reasoning_effort="high", temperature=1, response_format=FORM)
    message = speaking.ask(messages=[USER], **how).choices[0].message
    assert message.content in ("1", "2") and not hasattr(message, "reasoning_content")


@needs_kernels
def test_effort_is_shown(speaking):
    low = speaking.ask("a", tools=openai.omit, reasoning_effort="low").usage.prompt_tokens
    high = speaking.ask("a", tools=openai.omit, reasoning_effort="high").usage.prompt_tokens
    kwargs = {"chat_template_kwargs": {"reasoning_effort": "low"}}
    both = speaking.ask("a", tools=openai.omit, reasoning_effort="high", extra_body=kwargs).usage.prompt_tokens
    assert low == both < high


@needs_kernels
def test_a_special_token_ends_an_answer(speaking):
    """Though no text is made of it."""
    for stream in (False, True):
        answer = speaking.ask("Yes.[TOOL_CALLS]No.", tools=openai.omit, stop="[TOOL_CALLS]", stream=stream)
        said = streamed(answer)[1] if stream else answer.choices[0].message.content
        assert said == "Yes."


def test_marks_stay_where_nothing_is_told_apart(speaking):
    """Though they are special tokens."""
    said = "[THINK]a[/THINK]b"
    assert Thinking(MARKS[1], False, apart=False).reader() is None
    tokenizer = speaking.tokenizer
    text = answering(tokenizer, [], True, Thinking(MARKS[1], False).marks)
    assert "".join(map(text.add, tokenizer(said, add_special_tokens=False)["input_ids"])) + text.end() == said


def test_spaces_take_no_longer_the_more_there_are():
    begun = time.process_time()
    for marks, inside in ((MARKS[0], False), (MARKS[0], True), (HARMONY, False), (HARMONY, True)):
        reader = Thinking(marks, inside).reader()
        for _ in range(16_000):
            reader.add(" " * 64)
    assert time.process_time() - begun < 20  # a second here; minutes where each piece looks at all before it
