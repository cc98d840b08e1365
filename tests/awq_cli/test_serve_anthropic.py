"""Anthropic's API of messages, asked by its own client: blocks in, blocks and their events out."""

import json

import anthropic
import httpx
import pytest

from qlinear.backends.cpu import native
from tests.awq_cli.conftest import CONTEXT
from tests.awq_cli.served import SLOWLY, Server
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_responses import TEMPLATE, THOUGHT
from tests.awq_cli.test_serve_tools import CITY, ROME, Speaking, folder  # noqa: F401

needs_kernels = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
USER = {"role": "user", "content": "How warm is it?"}
WEATHER = {"name": "weather", "description": "Of a city.", "input_schema": CITY}


def client(server, key="none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=30)


class Replying(Speaking):
    def reply(self, said: str = "", messages=(USER,), stream=False, **how):
        self.say(said)
        how = {"max_tokens": 100, "extra_body": {"temperature": 0}, **how}
        return client(self).messages.create(model=self.name, messages=list(messages), stream=stream, **how)


@pytest.fixture(scope="module")
def replying(folder):  # noqa: F811
    with Replying(folder, TEMPLATE, special=True) as running:
        yield running


def prompt_tokens(message) -> int:
    """In this API those that were known are no input tokens."""
    return message.usage.input_tokens + message.usage.cache_read_input_tokens


HOLDS = {"text": "text", "thinking": "thinking", "tool_use": "input"}  # by types of blocks


@needs_kernels
@pytest.mark.parametrize(
    "said, more, blocks, reason",
    [
        ("Warm. ", {}, [("text", "Warm. ")], "end_turn"),
        ("", {}, [], "end_turn"),
        ("\n ", {}, [("text", "\n ")], "end_turn"),
        (f"{THOUGHT}Warm.", {}, [("thinking", "It is July."), ("text", "Warm.")], "end_turn"),
        (ROME, {"tools": [WEATHER]}, [("tool_use", {"city": "Rome"})], "tool_use"),
        (
            f"{THOUGHT}I look.\n{ROME}", {"tools": [WEATHER]},
            [("thinking", "It is July."), ("text", "I look."), ("tool_use", {"city": "Rome"})], "tool_use",
        ),
        ("It is. Warm.", {"stop_sequences": [" Warm", "x"]}, [("text", "It is.")], "stop_sequence"),
        ("Warm. Warm.", {"max_tokens": 1}, None, "max_tokens"),
    ],
)  # fmt: skip
def test_blocks_of_an_answer(said, more, blocks, reason, replying):
    """A stream's events, put together, are the answer that comes at once."""
    whole = replying.reply(said, **more)
    found = [(block.type, getattr(block, HOLDS[block.type])) for block in whole.content]
    assert whole.stop_reason == reason and whole.role == "assistant" and whole.model == replying.name
    assert whole.stop_sequence == (" Warm" if reason == "stop_sequence" else None)
    assert blocks is None or found == blocks
    events = list(replying.reply(said, stream=True, **more))
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert prompt_tokens(events[0].message) == prompt_tokens(whole)
    assert events[-2].delta.stop_reason == reason and events[-2].usage.output_tokens == whole.usage.output_tokens > 0
    made, open_at = [], None
    for event in events[1:-2]:
        if event.type == "content_block_start":
            assert open_at is None and event.index == len(made)
            open_at = event.index
            made.append((event.content_block.type, ""))
        elif event.type == "content_block_delta":
            assert event.index == open_at
            delta = event.delta
            piece = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[delta.type]
            made[-1] = (made[-1][0], made[-1][1] + getattr(delta, piece))
        else:
            assert event.type == "content_block_stop" and event.index == open_at
            open_at = None
    assert [(kind, json.loads(text) if kind == "tool_use" else text) for kind, text in made] == found


@needs_kernels
def test_a_conversation_goes_on(replying):
    """What was answered is sent back as it came; the model sees what a chat of OpenAI's shows it."""
    first = replying.reply(f"{THOUGHT}{ROME}", tools=[WEATHER])
    call = first.content[-1]
    told = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21"}]}
    blocks = [told, {"type": "text", "text": "And now?"}]
    asked = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": blocks}]
    second = replying.reply("Warm.", asked, tools=[WEATHER], system="Be brief.")
    called = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    seen = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "reasoning_content": "It is July.", "tool_calls": [called]},
        {"role": "tool", "content": "21", "tool_call_id": call.id},
        {"role": "user", "content": "And now?"},
    ]
    function = {"name": "weather", "description": "Of a city.", "parameters": CITY}
    length = replying.prompt(seen, tools=[{"type": "function", "function": function}])
    assert prompt_tokens(second) == length
    counted = client(replying).messages.count_tokens(
        model=replying.name, messages=asked, tools=[WEATHER], system="Be brief."
    )
    assert counted.input_tokens == length


@needs_kernels
def test_an_answer_that_has_begun(replying):
    begun = [USER, {"role": "assistant", "content": "It is"}]
    made = replying.reply(" warm.", begun)
    assert [block.text for block in made.content] == [" warm."]
    text = replying.tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True) + "It is"
    assert prompt_tokens(made) == len(replying.tokenizer(text, add_special_tokens=False)["input_ids"])


@needs_kernels
def test_a_call_is_asked_for(replying):
    other = {"name": "now", "input_schema": {"type": "object"}}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        how = {"tools": [WEATHER], "tool_choice": {**choice, "disable_parallel_tool_use": True}}
        (call,) = replying.reply(extra_body={"temperature": 1, "seed": 1}, **how).content
        assert call.name == "weather" and call.input["city"] in ("Rome", "Oslo")
    none = replying.reply("Warm.", tools=[WEATHER, other], tool_choice={"type": "none"})
    assert none.stop_reason == "end_turn" and none.content[0].text == "Warm."


@needs_kernels
def test_a_form(replying):
    config = {"format": {"type": "json_schema", "schema": {"enum": ["a", "b"]}}, "effort": "low"}
    (block,) = replying.reply(extra_body={"temperature": 1, "output_config": config}).content
    assert block.text in ('"a"', '"b"')


@needs_kernels
def test_more_than_there_is_room_for(server):
    """Clients give the most that they would ever want."""
    how = {"model": server.name, "extra_body": {"temperature": 0}}
    asked = [{"role": "user", "content": "this " * (CONTEXT - 20)}]
    made = client(server).messages.create(max_tokens=32_000, messages=asked, **how)
    assert made.stop_reason == "model_context_window_exceeded"
    assert made.usage.output_tokens == CONTEXT - prompt_tokens(made) > 0
    long = [{"role": "user", "content": "this " * CONTEXT}]
    assert client(server).messages.count_tokens(model=server.name, messages=long).input_tokens > CONTEXT
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: .* maximum context length"):
        client(server).messages.create(max_tokens=1, messages=long, **how)


@needs_kernels
def test_the_key_as_this_client_shows_it(served_checkpoint):
    with Server(served_checkpoint, "--api_key", "sesame") as server:
        how = {"model": server.name, "max_tokens": 1, "messages": [{"role": "user", "content": "this"}]}
        assert client(server, "sesame").messages.create(**how).usage.output_tokens == 1
        token = anthropic.Anthropic(base_url=server.url, auth_token="sesame")
        assert token.messages.create(**how).usage
        both = {"authorization": "Bearer none", "x-api-key": "sesame"}
        assert httpx.post(f"{server.url}/v1/messages", json=how, headers=both).status_code == 200
        with pytest.raises(anthropic.AuthenticationError):
            client(server, "sesam").messages.create(**how)
        assert httpx.post(f"{server.url}/v1/messages", json=how).json()["error"]["type"] == "authentication_error"


@needs_kernels
def test_what_goes_wrong_later_is_an_event(replying):
    replying._file.write_text("[]")  # nothing to say: it fails
    how = {"model": replying.name, "max_tokens": 5, "messages": [USER], "extra_body": {"temperature": 0}}
    with pytest.raises(anthropic.APIStatusError, match="the server failed"):
        list(client(replying).messages.create(stream=True, **how))
    with pytest.raises(anthropic.InternalServerError):
        client(replying).messages.create(**how)


@needs_kernels
def test_addresses_that_are_none(server):
    answer = httpx.post(f"{server.url}/v1/messages/batches", json={})
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"


@needs_kernels
def test_who_waits_is_told_that_there_will_be_more(served_checkpoint):
    code = SLOWLY.replace("time.sleep(0.03)", "time.sleep(0.5)").replace(
        "quick = ", "from awq_cli.serving import writing\nwriting.PATIENCE = 0.1\nquick = "
    )
    assert code.count("0.5") == 1
    with Server(served_checkpoint, code=code) as slow:
        how = {"model": slow.name, "max_tokens": 3, "messages": [{"role": "user", "content": "this"}], "stream": True}
        text = slow.post("messages", how).text
        plain = slow.post("chat/completions", how).text
    assert text.count('event: ping\ndata: {"type":"ping"}\n\n') >= 3 and text.index("message_start") < text.index(
        "ping"
    )
    assert "ping" not in plain and plain.endswith("data: [DONE]\n\n")
