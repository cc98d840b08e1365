"""Tools at the edges: marks in thoughts, halves of characters, schemas that say little, and answers of a form."""

from contextlib import closing

import numpy as np
import openai
import pytest

from awq_cli.serving.forms import Forms
from qlinear.backends.cpu import native
from run_awq import load
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_tools import NOW, ROME, called, folder, speaking, together  # noqa: F401

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


def test_a_thought_that_mentions_a_call(speaking):  # noqa: F811
    said = f"I may write <tool_call> now. {ROME}"
    (choice,) = speaking.ask(said).choices
    assert choice.message.content == "I may write <tool_call> now." and called(choice.message) == [
        ("weather", {"city": "Rome"})
    ]


def test_half_a_character_in_an_argument(speaking):  # noqa: F811
    said = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d"}}</tool_call>'
    for answer in (speaking.ask(said).choices[0].message, None):
        calls = called(answer) if answer else together(speaking.ask(said, stream=True))[1]
        assert calls == [("weather", {"city": "\ud83d"})]


def test_schemas_that_say_little(speaking):  # noqa: F811
    """Without a type arguments are an object all the same; what refers to itself as a whole is refused."""
    loose = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}
    how = dict(temperature=1, max_tokens=200, tool_choice={"type": "function", "function": {"name": "f"}})
    for seed in range(3):
        ((name, arguments),) = called(speaking.ask(tools=[loose], seed=seed, **how).choices[0].message) or [("f", {})]
        assert name == "f" and type(arguments) is dict
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    with pytest.raises(openai.BadRequestError, match="refers to itself as a whole"):
        tools = [{"type": "function", "function": {"name": "f", "parameters": tree}}]
        speaking.ask(tools=tools, tool_choice="required")


AGE = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
OF_AGE = {"type": "json_schema", "json_schema": {"name": "age", "schema": AGE}}


@pytest.mark.parametrize(
    "openings, said, kept",
    [
        (["<tool_call>"], ROME + NOW, True),
        (["<tool_call>"], '{"age": 2}', True),
        (["<tool_call>"], '{"age": 3}', False),
        (["<tool_call>"], f"So. {ROME}", False),
        (["[TOOL_CALLS]"], '[TOOL_CALLS]now[ARGS]{"x": "é\n"}', True),
        (["[TOOL_CALLS]"], ROME, False),
        (["<|python_tag|>", '{"name": "now", "parameters": '], '{"name": "now", "parameters": {}}', True),
        (["<|python_tag|>", '{"name": "now", "parameters": '], "<|python_tag|>any", True),
        (["<|python_tag|>", '{"name": "now", "parameters": '], '{"name": "then", "parameters": {}}', False),
        (["a<tool_call>'b\"\n\\"], "a<tool_call>'b\"\n\\ more", True),
    ],
)
def test_an_answer_of_a_form_or_a_call(folder, openings, said, kept):  # noqa: F811
    """Every token of it is one that may come there, and so is the end."""
    model = load(folder)
    with closing(Forms(model)) as forms:
        for form in (OF_AGE, OF_AGE):  # the second is known
            (adjust,) = forms.read(form, 1, openings)
    tokens = model.tokenizer(said, add_special_tokens=False)["input_ids"]
    logits = np.zeros(model.vocabulary, np.float32)
    allowed = []
    for number, token in enumerate([*tokens, model.tokenizer.eos_token_id]):
        allowed.append(np.isfinite(adjust(np.array([5, 6, 7, *tokens[:number]]), logits)[token]))
        if not allowed[-1]:
            break
    assert all(allowed) == kept


@pytest.mark.parametrize("form", [OF_AGE, {"type": "json_object"}])
def test_a_form_beside_tools(speaking, form):  # noqa: F811
    """A call, or an answer of the form; no thoughts, as of all answers of a form."""
    (choice,) = speaking.ask(ROME + NOW, response_format=form).choices
    assert called(choice.message) == [("weather", {"city": "Rome"}), ("now", {})]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    (choice,) = speaking.ask('{"age": 2}', response_format=form).choices
    assert (choice.message.content, choice.finish_reason) == ('{"age": 2}', "stop")
    assert together(speaking.ask(ROME, response_format=form, stream=True))[1:] == (
        [("weather", {"city": "Rome"})], "tool_calls"
    )  # fmt: skip
    choice = {"type": "function", "function": {"name": "weather"}}
    how = dict(temperature=1, seed=1, max_tokens=200, tool_choice=choice, response_format=form)
    assert called(speaking.ask(**how).choices[0].message)[0][0] == "weather"
