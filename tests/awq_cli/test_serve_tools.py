"""Tools, asked for by OpenAI's own client: what the model is shown, and calls in what it writes."""

import json
import shutil

import openai
import pytest
from transformers import PreTrainedTokenizerFast

from qlinear.backends.cpu import native
from tests.awq_cli.served import SAYING, Server
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

HERMES = (
    "{% if tools %}{{ bos_token }}tools {{ tools | tojson }} write <tool_call>{{ '{}' }}</tool_call> {% endif %}"
    "{% for m in messages %}{{ bos_token }}{{ m.role }} {{ m.content }}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments.city }}</tool_call>"
    "{% endfor %}{% if m.tool_call_id %} for {{ m.tool_call_id | length }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant{% if brief %} in brief{% endif %} {% endif %}"
)
MISTRAL = "{% if tools %}{{ tools | tojson }}[TOOL_CALLS]{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
USER = {"role": "user", "content": "How warm is it?"}
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


class Speaking(Server):
    """A server whose model says what it is told to."""

    def __init__(self, folder, template: str, special: bool):
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        for mark in ("<tool_call>", "</tool_call>", "[TOOL_CALLS]"):
            assert len(self.tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1
            assert self.tokenizer.decode(self.tokenizer.convert_tokens_to_ids(mark), skip_special_tokens=True) == (
                "" if special and mark == "[TOOL_CALLS]" else mark
            )
        self.tokenizer.chat_template = template
        self.tokenizer.save_pretrained(folder)
        self._file = folder.parent / "said.json"
        super().__init__(folder, code=SAYING, SAID=str(self._file))

    def say(self, said: str) -> None:
        """What the next answers are, if they are not drawn."""
        tokens = self.tokenizer(said, add_special_tokens=False)["input_ids"]
        self._file.write_text(json.dumps([*tokens, self.tokenizer.eos_token_id]))

    def ask(self, said: str = "", messages=(USER,), **how):
        self.say(said)
        how = {"temperature": 0, "tools": TOOLS, **how}
        return self.client().chat.completions.create(model=self.name, messages=list(messages), **how)

    def prompt(self, messages, **seen) -> int:
        """Its length, as transformers renders it."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **seen)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def folder(pets_checkpoint, tmp_path_factory):  # noqa: F811
    """With tokens for the marks in the place of the last three, one of which is special."""
    folder = tmp_path_factory.mktemp("tools") / "speaking"
    shutil.copytree(pets_checkpoint, folder)
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    names = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)[-3:]
    last = {*names}
    told["model"]["merges"] = [
        pair for pair in told["model"]["merges"] if not last & {*pair, "".join(pair)}
    ]  # fmt: skip
    for name, mark in zip(names, ("<tool_call>", "</tool_call>", "[TOOL_CALLS]"), strict=True):
        number = told["model"]["vocab"].pop(name)
        plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
        told["added_tokens"].append(dict(id=number, content=mark, special=mark[0] == "[", **plain))
    file.write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def speaking(folder):
    with Speaking(folder, HERMES, special=True) as running:
        yield running


def called(message):
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def together(chunks):
    """The answer of a stream: text, calls, how it ended."""
    text, calls, ends = "", {}, []
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            assert call.index not in calls and call.type == "function" and len(call.id) == 9
            calls[call.index] = (call.function.name, json.loads(call.function.arguments))
        ends.append(choice.finish_reason)
    assert ends[:-1] == [None] * (len(ends) - 1) and list(calls) == list(range(len(calls)))
    return text, list(calls.values()), ends[-1]


@pytest.mark.parametrize(
    "said, text, calls, end",
    [
        (ROME, None, [("weather", {"city": "Rome"})], "tool_calls"),
        (f"I look.\n{ROME}\n{NOW}", "I look.", [("weather", {"city": "Rome"}), ("now", {})], "tool_calls"),
        ("It is warm.", "It is warm.", [], "stop"),
        ("<tool_call>what</tool_call>", "<tool_call>what</tool_call>", [], "stop"),
    ],
)
def test_calls_and_text(speaking, said, text, calls, end):
    whole = speaking.ask(said)
    (choice,) = whole.choices
    assert (choice.message.content, called(choice.message), choice.finish_reason) == (text, calls, end)
    assert len({call.id for call in choice.message.tool_calls or []}) == len(calls)
    assert together(speaking.ask(said, stream=True)) == (text or "", calls, end)
    assert whole.usage.prompt_tokens == speaking.prompt([USER], tools=TOOLS)


def test_an_answer_that_is_cut_in_a_call(speaking):
    (choice,) = speaking.ask(ROME, max_tokens=5).choices
    assert choice.finish_reason == "length" and choice.message.tool_calls is None
    assert choice.message.content.startswith("<tool_call>\n")


def test_one_call_where_no_more_are_wanted(speaking):
    one = speaking.ask(ROME + NOW, parallel_tool_calls=False)
    assert called(one.choices[0].message) == [("weather", {"city": "Rome"})]
    assert one.choices[0].finish_reason == "tool_calls"
    assert one.usage.completion_tokens == len(speaking.tokenizer(ROME, add_special_tokens=False)["input_ids"])
    assert len(called(speaking.ask(ROME + NOW, parallel_tool_calls=True).choices[0].message)) == 2


def test_several_answers_and_probabilities(speaking):
    answer = speaking.ask(f"Yes. {ROME}", n=2, logprobs=True)
    assert [called(choice.message) for choice in answer.choices] == [[("weather", {"city": "Rome"})]] * 2
    told = answer.choices[1].logprobs.content
    assert "".join(one.token for one in told) == f"Yes. {ROME}"


def test_tools_that_are_not_to_be_called_are_not_shown(speaking):
    plain = speaking.ask(ROME, tool_choice="none")
    assert plain.choices[0].message.content == ROME and plain.usage.prompt_tokens == speaking.prompt([USER])
    assert speaking.ask("Hm.", tools=[]).usage.prompt_tokens == speaking.prompt([USER])


def test_what_tools_gave_is_told(speaking):
    """The client's own message is given back, with all of its fields."""
    answer = speaking.ask(f"I look. {ROME}").choices[0].message
    given = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "31 degrees"}
    told = {"role": "assistant", "content": "I look.", "tool_calls": [
        {"type": "function", "id": "a", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    ]}  # fmt: skip
    last = speaking.ask("Warm.", [USER, answer, given])
    assert last.choices[0].message.content == "Warm."
    assert last.usage.prompt_tokens == speaking.prompt([USER, told, given], tools=TOOLS)
    bare = {"role": "assistant", "content": None, "tool_calls": answer.model_dump()["tool_calls"]}
    empty = {**given, "content": ""}
    found = speaking.ask("Warm.", [USER, bare, empty]).usage.prompt_tokens
    assert found == speaking.prompt([USER, {**told, "content": ""}, empty], tools=TOOLS)


def test_what_was_thought_is_told(speaking):
    said = {"role": "assistant", "content": "Warm.", "reasoning_content": "It is July."}
    messages = [USER, said, {"role": "user", "content": "Why?"}]
    assert speaking.ask("So.", messages).usage.prompt_tokens == speaking.prompt(messages, tools=TOOLS)
    other = [USER, {"role": "assistant", "content": "Warm.", "reasoning": "It is July."}, messages[2]]
    assert speaking.ask("So.", other).usage.prompt_tokens == speaking.prompt(messages, tools=TOOLS)


@pytest.mark.parametrize("name", ["rendered", "tokenizer", "seen"])
def test_names_that_mean_something_here_are_a_templates_own(speaking, name):
    plain, seen = speaking.ask("So.", tools=[]), {"chat_template_kwargs": {name: 1}}
    assert speaking.ask("So.", tools=[], extra_body=seen).usage == plain.usage


def test_what_a_template_is_asked_for(speaking):
    brief = speaking.ask("So.", tools=[], extra_body={"chat_template_kwargs": {"brief": True}})
    assert brief.usage.prompt_tokens == speaking.prompt([USER], brief=True) != speaking.prompt([USER])


def test_a_call_that_has_to_be(speaking):
    """Of a model that knows nothing of it."""
    for seed in range(4):
        how = dict(temperature=1, seed=seed, max_tokens=300)
        (choice,) = speaking.ask(tool_choice="required", parallel_tool_calls=False, **how).choices
        ((name, arguments),) = called(choice.message)
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert name == "now" or arguments["city"] in ("Rome", "Oslo")
        named = {"type": "function", "function": {"name": "weather"}}
        (choice,) = speaking.ask(tool_choice=named, **how).choices
        ((name, arguments),) = called(choice.message)
        assert name == "weather" and arguments["city"] in ("Rome", "Oslo") and choice.finish_reason == "stop"
        text, calls, end = together(speaking.ask(tool_choice=named, stream=True, **how))
        assert (text, calls, end) == ("", [(name, arguments)], "stop")


def test_schemas_that_refer_to_others(speaking):
    def tool(name, *cities):
        defined = {"$defs": {"City": {"enum": list(cities)}}}
        parameters = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
        return {"type": "function", "function": {"name": name, "parameters": parameters | defined}}

    tools = [tool("to", "Rome", "Oslo"), tool("from", "Rome", "Oslo")]
    how = dict(temperature=1, seed=1, max_tokens=200, tool_choice="required", parallel_tool_calls=False)
    ((_, arguments),) = called(speaking.ask(tools=tools, **how).choices[0].message)
    assert arguments["city"] in ("Rome", "Oslo")
    with pytest.raises(openai.BadRequestError, match="different schemas by one name"):
        speaking.ask(tools=[tool("to", "Rome"), tool("from", "Oslo")], **how)


def test_a_mark_that_is_a_special_token(folder, speaking, tmp_path):
    shutil.copytree(folder, tmp_path / "mistral")
    with Speaking(tmp_path / "mistral", MISTRAL, special=True) as server:
        said = 'So. [TOOL_CALLS][{"name": "now", "arguments": {}}]'
        (choice,) = server.ask(said).choices
        assert (choice.message.content, called(choice.message)) == ("So.", [("now", {})])
        assert together(server.ask(said, stream=True)) == ("So.", [("now", {})], "tool_calls")


NAMED = {"type": "function", "function": {"name": "then"}}


@pytest.mark.parametrize(
    "body, parameter, message",
    [
        ({"tools": [{"type": "web"}]}, "tools[0]", "no tool of type function"),
        ({"tools": {}, "tool_choice": "auto"}, None, None),
        ({"tools": "x"}, "tools", "a list of up to 128"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]", "a name of up to 64"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0]", "no JSON schema"),
        ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice", "among the tools"),
        ({"tools": TOOLS, "tool_choice": "never"}, "tool_choice", "among the tools"),
        ({"tool_choice": "required"}, "tool_choice", "among the tools"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "an object"),
        ({"chat_template_kwargs": {"self": 1}}, None, "cannot be used: TypeError"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "cannot have tokenize"),
        ({"functions": [1]}, "functions", "not supported"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "nix"}}}],
             "tool_choice": "required"}, "tools", "a schema that cannot be followed",
        ),
    ],
)  # fmt: skip
def test_requests_that_are_wrong(speaking, body, parameter, message):
    answer = speaking.post("chat/completions", {"messages": [USER], "max_tokens": 1, "seed": 1, **body})
    assert (answer.status_code == 200) == (message is None)
    if message is not None:
        error = answer.json()["error"]
        assert error["param"] == parameter and message in error["message"]


@pytest.mark.parametrize(
    "calls, message",
    [
        (1, "a list of calls"),
        ([{}], "no call of a function"),
        ([{"function": {"name": "now", "arguments": "[1]"}}], "no JSON object"),
        ([{"function": {"name": "now", "arguments": "{"}}], "no JSON object"),
    ],
)
def test_calls_that_are_none(speaking, calls, message):
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": calls}, USER]
    error = speaking.post("chat/completions", {"messages": messages}).json()["error"]
    assert message in error["message"]


def test_a_template_without_tools(server):
    answer = server.post("chat/completions", {"messages": [USER], "tools": TOOLS}).json()["error"]
    assert answer["param"] == "tools" and "template takes none" in answer["message"]
    call = {"function": {"name": "now", "arguments": "{}"}}
    for message in ({"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x", "tool_call_id": "a"}):
        answer = server.post("chat/completions", {"messages": [USER, message]}).json()["error"]
        assert "which this model's chat template does not know" in answer["message"]
