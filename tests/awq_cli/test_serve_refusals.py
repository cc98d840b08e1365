"""What the server refuses, and how it says so."""

import pytest

from qlinear.backends.cpu import native
from tests.awq_cli.conftest import CONTEXT

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

USER = [{"role": "user", "content": "this"}]
WRONG = [
    ("chat/completions", {}, 400, "messages", "invalid_value", "has to be a list"),
    ("chat/completions", {"messages": []}, 400, "messages", "invalid_value", "has to be a list"),
    ("chat/completions", {"messages": [{"role": "robot"}]}, 400, "messages[0]", "invalid_value", "a role, one of"),
    ("chat/completions", {"messages": [{"role": []}]}, 400, "messages[0]", "invalid_value", "a role, one of"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0].content", "invalid_value", "a text"),
    (
        "chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
        "messages[0].content", "invalid_value", "a part that is no text",
    ),
    (
        "chat/completions", {"messages": [*USER, {"role": "user", "content": " "}]}, 400, "messages[1].content",
        "invalid_value", "messages[1].content is empty; give some text",
    ),
    ("chat/completions", {"messages": USER, "model": "gpt-5"}, 404, "model", "model_not_found", "'gpt-5'"),
    ("chat/completions", {"messages": USER, "n": 69}, 400, "n", "invalid_value", "takes 68 at once"),
    ("completions", {"prompt": "a", "n": 0}, 400, "n", "invalid_value", "1 at least"),
    ("completions", {"prompt": ["a", "b"], "n": 10**4200}, 400, "n", "invalid_value", "a whole number"),
    ("completions", {"prompt": "a", "best_of": 3}, 400, "best_of", "unsupported_parameter", "not supported"),
    ("completions", {"prompt": "a", "min_p": 1.5}, 400, "min_p", "invalid_value", "0 to 1"),
    ("completions", {"prompt": "a", "top_k": 2.5}, 400, "top_k", "invalid_value", "a whole number"),
    ("completions", {"prompt": "a", "presence_penalty": 3}, 400, "presence_penalty", "invalid_value", "-2 to 2"),
    ("completions", {"prompt": "a", "frequency_penalty": "1"}, 400, "frequency_penalty", "invalid_value", "a number"),
    ("completions", {"prompt": "a", "repetition_penalty": 1e-46}, 400, "repetition_penalty", "invalid_value", "0.01"),
    ("completions", {"prompt": "a", "logit_bias": [1]}, 400, "logit_bias", "invalid_value", "an object of token ids"),
    ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value", "not in [0, 512)"),
    ("completions", {"prompt": "a", "logit_bias": {"512": 1}}, 400, "logit_bias", "invalid_value", "not in [0, 512)"),
    ("completions", {"prompt": "a", "logit_bias": {"5": 101}}, 400, "logit_bias", "invalid_value", "-100 to 100"),
    ("completions", {"prompt": "a", "logit_bias": {"5": True}}, 400, "logit_bias", "invalid_value", "no number"),
    ("chat/completions", {"messages": USER, "tools": [1]}, 400, "tools[0]", "invalid_value", "no tool of type"),
    ("completions", {"prompt": "a", "tools": []}, 400, "tools", "unknown_parameter", "Unrecognized"),
    ("chat/completions", {"messages": USER, "nix": 2}, 400, "nix", "unknown_parameter", "Unrecognized"),
    ("chat/completions", {"messages": USER, "stream": 1}, 400, "stream", "invalid_value", "true or false"),
    ("chat/completions", {"messages": USER, "temperature": 3}, 400, "temperature", "invalid_value", "0 to 2"),
    ("chat/completions", {"messages": USER, "temperature": "1"}, 400, "temperature", "invalid_value", "a number"),
    ("chat/completions", {"messages": USER, "top_p": -1}, 400, "top_p", "invalid_value", "0 to 1"),
    ("chat/completions", {"messages": USER, "seed": 1.5}, 400, "seed", "invalid_value", "a whole number"),
    ("chat/completions", {"messages": USER, "max_tokens": 0}, 400, "max_tokens", "invalid_value", "1 at least"),
    ("chat/completions", {"messages": USER, "max_tokens": -2}, 400, "max_tokens", "invalid_value", "1 at least"),
    (
        "chat/completions", {"messages": USER, "mirostat": 2}, 400, "mirostat", "unsupported_parameter",
        "mirostat is not supported here",
    ),
    ("completions", {"prompt": "a", "ignore_eos": 0}, 400, "ignore_eos", "unsupported_parameter", "not supported"),
    ("chat/completions", {"messages": USER, "max_tokens": True}, 400, "max_tokens", "invalid_value", "whole number"),
    ("chat/completions", {"messages": USER, "stop": [""]}, 400, "stop", "invalid_value", "none of them empty"),
    ("chat/completions", {"messages": USER, "stop": ["a"] * 65}, 400, "stop", "invalid_value", "up to 64"),
    ("chat/completions", {"messages": USER, "top_logprobs": 3}, 400, "top_logprobs", "invalid_value", "needs logprobs"),
    (
        "chat/completions", {"messages": USER, "max_tokens": CONTEXT}, 400, "messages", "context_length_exceeded",
        f"maximum context length is {CONTEXT} tokens; 5 in the prompt and {CONTEXT} to be written",
    ),
    (
        "chat/completions", {"messages": [{"role": "user", "content": "this " * 900}]}, 400, "messages",
        "context_length_exceeded", f"maximum context length is {CONTEXT} tokens; 904 in the prompt",
    ),
    ("chat/completions", {"messages": USER, "n": True}, 400, "n", "invalid_value", "a whole number"),
    ("chat/completions", {"messages": USER, "moderation": {}}, 400, "moderation", "unsupported_parameter", "not"),
    (
        "chat/completions", {"messages": USER, "stream": True, "stream_options": {"nix": 1}}, 400, "stream_options",
        "invalid_value", "has nix, which nobody knows",
    ),
    (
        "chat/completions", {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}, *USER]}, 400,
        "messages[0].tool_calls[0]", "invalid_value", "is no call of a function",
    ),
    (
        "chat/completions", {"messages": [{"role": "assistant", "content": "a", "function_call": {}}, *USER]}, 400,
        "messages[0]", "invalid_value", "has function_call, which this model is not told of",
    ),
    (
        "chat/completions", b'{"model": "served", "messages": [{"role": "user", "content": "a"}], "\\ud800": 1}', 400,
        "\ud800", "unknown_parameter", "Unrecognized",
    ),
    (
        "completions", {"prompt": "this " * 900}, 400, "prompt", "context_length_exceeded",
        f"maximum context length is {CONTEXT} tokens; 901 in the prompt",
    ),
    ("completions", {"prompt": [["a"], "b"]}, 400, "prompt", "invalid_value", "a text, a list of token ids"),
    ("completions", {"prompt": ["a", ""]}, 400, "prompt", "invalid_value", "empty"),
    ("completions", {"prompt": []}, 400, "prompt", "invalid_value", "a text, a list of token ids"),
    ("completions", {"prompt": ["a"] * 5, "n": 14}, 400, "prompt", "invalid_value", "makes 70 answers"),
    ("completions", {"prompt": [1, 99999]}, 400, "prompt", "invalid_value", "has a token that is not in"),
    ("completions", {"prompt": "a", "logprobs": 9}, 400, "logprobs", "invalid_value", "0 to 5"),
    ("completions", b"{", 400, None, "invalid_json", "not JSON"),
    ("completions", b"[1]", 400, None, "invalid_json", "JSON object"),
    ("completions", b'{"user": 1e999}', 400, None, "invalid_json", "1e999 is no number"),
    ("completions", b'{"user": NaN}', 400, None, "invalid_json", "NaN is no number"),
    ("completions", b"\xff\xfe\x00", 400, None, "invalid_json", "not JSON"),
    ("completions", b"[" * 100_000, 400, None, "invalid_json", "not JSON"),
    ("completions", b" " * (5 << 20), 413, None, "body_too_large", "more than 103936 bytes"),
    ("nothing", {}, 404, None, "unknown_url", "POST /v1/nothing: Not Found; there are /v1/chat/completions, /v1/"),
    ("models", {}, 405, None, "unknown_url", "Method Not Allowed"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[3]}-{case[5][:20]}")
def test_requests_that_are_wrong(server, case):
    path, body, status, parameter, code, message = case
    answer = server.post(path, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", parameter, code)
    assert message in error["message"] and "Traceback" not in answer.text and "`" not in error["message"]


@pytest.mark.parametrize("path, body", [("chat/completions", {"messages": USER}), ("completions", {"prompt": "a"})])
def test_a_request_need_not_name_the_model(server, path, body):
    answer = server.post(path, {"model": None, "max_tokens": 1, **body})
    assert answer.status_code == 200 and answer.json()["model"] == server.name


# As front ends send them whether they are wanted or not.
IDLE = {
    "mirostat": 0, "typical_p": 1.0, "repeat_penalty": 1, "min_tokens": 0, "stop_token_ids": [], "ignore_eos": False,
    "skip_special_tokens": True, "cache_prompt": True, "id_slot": -1, "keep_alive": "5m",
}  # fmt: skip


@pytest.mark.parametrize("path, body", [("chat/completions", {"messages": USER}), ("completions", {"prompt": "a"})])
def test_fields_of_other_servers_that_ask_for_nothing(server, path, body):
    plain, idle = (server.post(path, {"temperature": 0, "max_tokens": 5, **body, **more}) for more in ({}, IDLE))
    assert idle.status_code == 200 and idle.json()["usage"]["completion_tokens"] == 5
    told = [answer.json()["choices"] for answer in (plain, idle)]
    assert told[0] == told[1]


def test_no_bound(server):
    """As LM Studio has it in its example: what there is room for."""
    whole, none = (
        server.post("chat/completions", {"messages": USER, "temperature": 0, **more}).json()
        for more in ({"max_tokens": -1}, {})
    )
    assert whole["choices"] == none["choices"] and whole["usage"]["completion_tokens"] > 100
