"""The API of responses, asked by OpenAI's own client: items in, items and their events out."""

import json
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from qlinear.backends.cpu import native
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_tools import CITY, ROME, Speaking, folder  # noqa: F401

needs_kernels = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}{{ bos_token }}{{ m.role }}"
    "{{ m.reasoning_content }} {{ m.content }}{% if '</think>' in m.content %}!{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
    "{{ bos_token }}assistant "
)
WEATHER = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": CITY}
THOUGHT = "<think>\nIt is July.\n</think>\n\n"


class Replying(Speaking):
    def reply(self, said: str = "", asked="How warm is it?", parsed=None, **how):
        self.say(said)
        how = {"model": self.name, "input": asked, "temperature": 0, **how}
        responses = self.client().responses
        return responses.create(**how) if parsed is None else responses.parse(text_format=parsed, **how)

    def replied(self, said: str, **body) -> httpx.Response:
        self.say(said)
        return self.post("responses", {"input": "Hm", "temperature": 0, **body})


@pytest.fixture(scope="module")
def replying(folder):  # noqa: F811
    with Replying(folder, TEMPLATE, special=True) as running:
        yield running


@needs_kernels
@pytest.mark.parametrize(
    "said, more, items",
    [
        ("Warm. ", {}, [("message", "Warm. ")]),
        ("", {}, [("message", "")]),
        ("\n ", {}, [("message", "\n ")]),
        (f"{THOUGHT}Warm.", {}, [("reasoning", "It is July."), ("message", "Warm.")]),
        (ROME, {"tools": [WEATHER]}, [("function_call", "weather")]),
        (f"{THOUGHT}{ROME}", {"tools": [WEATHER]}, [("reasoning", "It is July."), ("function_call", "weather")]),
        (f"I look.\n{ROME}", {"tools": [WEATHER]}, [("message", "I look."), ("function_call", "weather")]),
        (f"{ROME}\n{ROME}", {"tools": [WEATHER]}, [("function_call", "weather")] * 2),
        (f"{ROME}\n so", {"tools": [WEATHER]}, [("function_call", "weather"), ("message", "\n so")]),
    ],
)
def test_items_of_an_answer(said, more, items, replying):
    """A stream's events, put together, are the answer that comes at once."""

    def shown(response):
        assert response.status == "completed" and response.incomplete_details is None and response.error is None
        assert all(item.status == "completed" for item in response.output)
        return [
            (item.type, item.name if item.type == "function_call" else item.content[0].text) for item in response.output
        ]

    whole = replying.reply(said, **more)
    events = list(replying.reply(said, stream=True, **more))
    assert shown(whole) == items and shown(events[-1].response) == items
    assert whole.usage.output_tokens == events[-1].response.usage.output_tokens > 0
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    texts, begun, ended = {}, {}, {}
    for event in events[2:-1]:
        if event.type == "response.output_item.added":
            assert event.output_index == len(begun) == len(ended) and event.item.status == "in_progress"
            begun[event.output_index] = event.item
        elif event.type == "response.output_item.done":
            ended[event.output_index] = event.item
        elif event.type.endswith(".delta"):
            assert event.item_id == begun[event.output_index].id
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
    assert [item.id for item in ended.values()] == [item.id for item in begun.values()]
    assert list(ended.values()) == events[-1].response.output
    for number, item in ended.items():
        assert texts[number] == (item.arguments if item.type == "function_call" else item.content[0].text)


@needs_kernels
def test_an_answer_that_is_cut(replying):
    made = replying.reply("Warm. Warm. Warm. Warm.", max_output_tokens=2)
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert made.output[-1].status == "incomplete" and made.usage.output_tokens == 2
    *_, last = replying.reply("Warm. Warm. Warm. Warm.", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text == made.output_text


@needs_kernels
def test_thoughts_are_counted_apart(replying):
    made = replying.reply(f"{THOUGHT}Warm.")
    thought = replying.tokenizer("<think>\nIt is July.\n", add_special_tokens=False)["input_ids"]
    assert abs(made.usage.output_tokens_details.reasoning_tokens - len(thought)) <= 1  # the end of a line is of neither
    assert replying.reply("Warm.").usage.output_tokens_details.reasoning_tokens == 0


@needs_kernels
def test_a_conversation_goes_on(replying):
    """What was answered is sent back as it came; the model sees what a chat shows it."""
    first = replying.reply(f"{THOUGHT}{ROME}", tools=[WEATHER])
    call = first.output[-1]
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    user = {"role": "user", "content": "How warm is it?"}
    asked = [user, *(item.model_dump() for item in first.output), told]
    second = replying.reply("Warm.", asked, tools=[WEATHER])
    assert second.output_text == "Warm."
    called = {"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    shown = [
        user,
        {"role": "assistant", "content": "", "reasoning_content": "It is July.", "tool_calls": [called]},
        {"role": "tool", "content": "21", "tool_call_id": call.call_id},
    ]
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    tools = [{"type": "function", "function": function}]
    assert second.usage.input_tokens == replying.prompt(shown, tools=tools)
    again = replying.reply("Warm.", asked, tools=[WEATHER])
    assert again.usage.input_tokens_details.cached_tokens >= second.usage.input_tokens - 1


@needs_kernels
def test_a_call_is_required(replying):
    """The model itself writes it: nothing else is left possible."""
    for choice in ("required", {"type": "function", "name": "weather"}):
        made = replying.reply(tool_choice=choice, extra_body={"seed": 1}, tools=[WEATHER], temperature=1)
        (call,) = [item for item in made.output if item.type == "function_call"][:1]
        assert call.name == "weather" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")


@needs_kernels
def test_a_space_of_names(replying):
    """Clients have functions in such, and look for it in the call; a search that nobody does here is not offered."""
    tools = [{"type": "namespace", "name": "sky", "description": "", "tools": [WEATHER]}, {"type": "web_search"}]
    made = replying.replied(ROME, tools=tools).json()
    (call,) = made["output"]
    assert (call["name"], call["namespace"]) == ("weather", "sky") and made["tools"] == tools[:1]
    assert "namespace" not in replying.replied(ROME, tools=[WEATHER]).json()["output"][0]


class City(BaseModel):
    city: Literal["Rome", "Oslo"]


@needs_kernels
def test_a_form(replying):
    made = replying.reply(parsed=City, temperature=1, extra_body={"seed": 3}, max_output_tokens=400)
    assert isinstance(made.output_parsed, City)
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["a", "b"]}, "strict": True}}
    assert replying.reply(temperature=1, text=text).output_text in ('"a"', '"b"')
    assert replying.reply(text={"format": {"type": "text"}, "verbosity": "low"}, said="Warm.").output_text == "Warm."


@needs_kernels
def test_probabilities(replying):
    (part,) = replying.reply("Warm.", include=["message.output_text.logprobs"], top_logprobs=2).output[0].content
    assert "".join(one.token for one in part.logprobs) == "Warm."
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in part.logprobs)
    assert replying.reply("Warm.").output[0].content[0].logprobs == []


@needs_kernels
@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_are_those_of_the_message(stream, replying):
    """And of no thought or call beside it."""
    how = {"include": ["message.output_text.logprobs"], "tools": [WEATHER]}
    made = replying.reply(f"{THOUGHT}I look.\n{ROME}", stream=stream, **how)
    if stream:
        *_, last = made
        made = last.response
    assert [item.type for item in made.output] == ["reasoning", "message", "function_call"]
    told = "".join(one.token for one in made.output[1].content[0].logprobs)
    assert told.strip() == "I look." and "call" not in told and "think" not in told


@needs_kernels
def test_what_a_request_said_is_told_again(replying):
    made = replying.reply("Warm.", instructions="Be brief.", metadata={"a": "b"}, tools=[WEATHER], store=True)
    assert (made.instructions, made.metadata, made.temperature, made.tools[0].name) == (
        "Be brief.",
        {"a": "b"},
        0,
        "weather",
    )
    assert made.model == replying.name and made.object == "response" and made.to_dict()["store"] is True


@needs_kernels
def test_what_goes_wrong_later_is_an_event(replying):
    """The status has been sent by then."""
    said = replying.replied("Warm.", stream=True, max_output_tokens=40)
    assert said.status_code == 200 and b"[DONE]" not in said.content
    replying._file.write_text("[]")  # nothing to say: it fails
    failed = replying.post("responses", {"input": "Hm", "temperature": 0, "stream": True})
    kind, told = failed.text.strip().split("\n\n")[-1].split("\n")
    event = json.loads(told.removeprefix("data: "))
    assert kind == "event: response.failed" and event["type"] == "response.failed"
    assert event["response"]["status"] == "failed" and event["response"]["error"]["code"] == "server_error"
    with pytest.raises(openai.APIStatusError) as error:
        replying.client().responses.create(model=replying.name, input="Hm", temperature=0)
    assert error.value.status_code == 500


@needs_kernels
def test_a_request_refers_to_what_was_answered(replying):
    """By the name of the answer, or of an item in it; the model is shown what it would be shown of all of it."""
    user = {"role": "user", "content": "How warm is it?"}
    first = replying.reply(f"{THOUGHT}Warm.", [user], instructions="Be brief.")
    thought, message = first.output
    whole = [user, thought.model_dump(), message.model_dump(), {"role": "user", "content": "And now?"}]
    shown = [*whole[:1], {"role": "assistant", "content": "Warm.", "reasoning_content": "It is July."}, whole[-1]]
    length = replying.prompt(shown)
    references = [{"type": "item_reference", "id": thought.id}, {"id": message.id}]
    assert replying.reply("Cold.", [user, *references, whole[-1]]).usage.input_tokens == length
    second = replying.reply("Cold.", "And now?", previous_response_id=first.id)
    assert second.usage.input_tokens == length and second.previous_response_id == first.id
    third = replying.reply("Mild.", "Why?", previous_response_id=second.id)
    told = [*shown, {"role": "assistant", "content": "Cold."}, {"role": "user", "content": "Why?"}]
    assert third.usage.input_tokens == replying.prompt(told)
    assert replying.client().responses.retrieve(second.id).output_text == "Cold."
    replying.client().responses.delete(second.id)
    for ask in (
        lambda: replying.client().responses.retrieve(second.id),
        lambda: replying.client().responses.delete(second.id),
        lambda: replying.reply("Mild.", "Why?", previous_response_id=third.id),
        lambda: replying.reply("Mild.", [{"type": "item_reference", "id": second.output[0].id}]),
    ):
        with pytest.raises(openai.NotFoundError, match="is not here"):
            ask()
    with pytest.raises(openai.BadRequestError, match="comes at once"):
        list(replying.client().responses.retrieve(first.id, stream=True))


@needs_kernels
def test_an_answer_that_is_not_to_be_kept(replying):
    made = replying.reply("Warm.", store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        replying.client().responses.retrieve(made.id)
