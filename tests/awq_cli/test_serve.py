"""The server, asked by OpenAI's own client and by clients that mean no good."""

import json
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoTokenizer

from qlinear.backends.cpu import native
from run_awq import load
from tests.awq_cli.conftest import CONTEXT
from tests.awq_cli.served import Server

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

PROMPTS = ("the value of this", "a class is", "for each of these", "an object that has")


@pytest.fixture(scope="module")
def checkpoint(served_checkpoint):
    return served_checkpoint


@pytest.fixture
def slow(checkpoint):
    with Server(checkpoint, "--slots", 1, slowly=True) as running:
        yield running


@pytest.fixture(scope="module")
def alone(checkpoint):
    model = load(checkpoint)
    return lambda prompt, chat, count: "".join(model.stream(prompt, chat=chat, max_new_tokens=count))


def ask(server, prompt, count=20, client=None, **how):
    messages = [{"role": "user", "content": prompt}]
    how = {"temperature": 0, "max_tokens": count, **how}
    return (client or server.client()).chat.completions.create(model=server.name, messages=messages, **how)


def test_an_answer(server, alone):
    answer = ask(server, PROMPTS[0])
    (choice,) = answer.choices
    assert choice.message.content == alone(PROMPTS[0], True, 20) and choice.message.role == "assistant"
    assert (choice.finish_reason, choice.index, answer.model, answer.object) == (
        "length", 0, "served", "chat.completion",
    )  # fmt: skip
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (8, 20, 28)


def test_a_completion(server, alone, checkpoint):
    made = server.client().completions.create(model=server.name, prompt=PROMPTS[1], temperature=0)
    assert made.choices[0].text == alone(PROMPTS[1], False, 16)
    assert made.choices[0].text[:1] == " " != made.choices[0].text[1:2]  # which stands between it and the prompt
    tokens = AutoTokenizer.from_pretrained(checkpoint)(PROMPTS[1])["input_ids"]
    of_tokens = server.client().completions.create(model=server.name, prompt=tokens, temperature=0)
    assert of_tokens.choices[0].text == made.choices[0].text and made.usage.prompt_tokens == len(tokens) == 4


def test_streams_are_the_same_in_pieces(server, alone):
    chunks = list(ask(server, PROMPTS[2], stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == alone(PROMPTS[2], True, 20) and sum(map(bool, pieces)) == 20
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 20
    made = server.client().completions.create(
        model=server.name, prompt=PROMPTS[3], temperature=0, max_tokens=9, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in made)
    assert text == alone(PROMPTS[3], False, 9) and text[:1] == " " != text[1:2]


def test_stop_texts_and_limits(server, alone):
    whole = alone(PROMPTS[0], True, 20)
    words = whole.split()
    cut = f"{words[4]} {words[5]}"
    for stream in (False, True):
        answer = ask(server, PROMPTS[0], stop=["never this", cut], stream=stream)
        if stream:
            chunks = list(answer)
            text, reason = (
                "".join(c.choices[0].delta.content or "" for c in chunks),
                chunks[-1].choices[0].finish_reason,
            )
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(cut)], "stop")
    limited = ask(server, PROMPTS[0], None, max_completion_tokens=3)
    assert limited.choices[0].message.content == alone(PROMPTS[0], True, 3)
    long = ask(server, PROMPTS[0], None)  # as long as there is room, or the model has something to say
    assert long.usage.total_tokens == CONTEXT or long.choices[0].finish_reason == "stop"


def test_what_is_drawn_is_drawn_again_with_its_seed(server):
    def drawn(**how):
        return ask(server, PROMPTS[1], temperature=1.5, **how).choices[0].message.content

    assert drawn(seed=5) == drawn(seed=5) != drawn(seed=6)
    assert drawn(seed=-3) == drawn(seed=-3)
    assert drawn() != drawn()
    assert drawn(top_p=0) == ask(server, PROMPTS[1]).choices[0].message.content


def test_next_to_no_temperature_is_none(server):
    assert ask(server, PROMPTS[0], temperature=1e-310).choices[0] == ask(server, PROMPTS[0]).choices[0]


def test_fields_that_change_no_answer_are_taken(server):
    """Messages are given back as the client had them, with all of its fields."""
    said = ask(server, PROMPTS[0]).choices[0].message.model_dump()
    body = {"messages": [{"role": "user", "content": "this", "name": "bob"}, said, {"role": "user", "content": "that"}]}
    aside = {"prompt_cache_retention": None, "prompt_cache_options": {}, "moderation": None, "n": 1}
    assert server.post("chat/completions", body | aside | {"max_tokens": 2}).status_code == 200


def test_probabilities(server, checkpoint):
    model = load(checkpoint)
    prompt = model.encode_prompt(PROMPTS[0], chat=True)
    told = ask(server, PROMPTS[0], 6, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    answer = [model.tokenizer._tokenizer.token_to_id(one.token) for one in told]
    logits = model.logits(np.concatenate([prompt, answer])).double()[len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=1)
    assert len(told) == 6
    for one, token, row in zip(told, answer, expected, strict=True):
        assert abs(one.logprob - row[token].item()) < 1e-5 and bytes(one.bytes).decode() == one.token
        best = row.topk(3)
        assert np.allclose([top.logprob for top in one.top_logprobs], best.values, atol=1e-5)
        assert [model.tokenizer._tokenizer.token_to_id(top.token) for top in one.top_logprobs] == best.indices.tolist()
    made = server.client().completions.create(
        model=server.name, prompt=PROMPTS[0], temperature=0, max_tokens=4, logprobs=2
    )
    of_completion = made.choices[0].logprobs
    assert [len(top) for top in of_completion.top_logprobs] == [2] * 4 and of_completion.text_offset[0] == 0
    assert len(of_completion.tokens) == len(of_completion.token_logprobs) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_are_of_what_stands_before_a_stop_text(server, alone, stream):
    whole = alone(PROMPTS[0], True, 20)
    words = whole.split(" ")
    stop = f" {words[2]} {words[3][:1]}"  # of which a part is held back until it is known
    made = ask(server, PROMPTS[0], stop=[stop], logprobs=True, stream=stream)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    text = "".join((one.delta if stream else one.message).content or "" for one in choices)
    told = [told for one in choices if one.logprobs for told in one.logprobs.content]
    assert text == whole[: whole.index(stop)] and len(told) == 2


def test_models(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["served"]
    assert client.models.retrieve("served").owned_by == "run_awq"
    with pytest.raises(openai.NotFoundError, match="The model 'other' does not exist"):
        client.models.retrieve("other")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


USER = [{"role": "user", "content": "this"}]


def test_a_key(checkpoint):
    with Server(checkpoint, RUN_AWQ_API_KEY="sesame") as server:
        assert ask(server, "this", 2, server.client("sesame")).usage.completion_tokens == 2
        for key in ("wrong", "sesam", "sesamee"):
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
                ask(server, "this", 2, server.client(key))
        assert server.post("chat/completions", {"messages": USER}).status_code == 401
        assert httpx.get(f"{server.url}/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_key_is_what_stands_between_its_spaces(checkpoint):
    with Server(checkpoint, RUN_AWQ_API_KEY=" sesame ") as opened:
        asked = {"authorization": "Bearer sesame"}
        assert httpx.get(f"{opened.url}/v1/models", headers=asked).status_code == 200


def test_four_at_once_get_what_one_gets_alone(server, alone):
    def client(number):
        prompt, count = PROMPTS[number % 4], 15 + 7 * number
        chunks = ask(server, prompt, count, stream=True)
        return prompt, count, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(client, range(12)))
    for prompt, count, text in answers:
        assert text == alone(prompt, True, count)
    assert server.metric("awq_prompt_tokens_known_total") > 0


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_clients_that_go_away_cost_nothing(slow):
    chunks = ask(slow, PROMPTS[0], 500, stream=True)
    next(iter(chunks))
    chunks.close()
    until(lambda: slow.metric('awq_ended_total{how="interrupted"}') == 1)
    with suppress(openai.APITimeoutError):
        ask(slow, PROMPTS[1], 500, slow.client(), timeout=0.5)
    until(lambda: slow.metric('awq_ended_total{how="interrupted"}') == 2)
    half = socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2])))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    half.close()
    until(lambda: slow.metric("awq_running") == 0)
    assert ask(slow, PROMPTS[0], 3).usage.completion_tokens == 3


def test_more_than_may_wait_are_told_so(slow):
    """One is written, sixteen wait, whom it takes too long."""

    def client(number):
        body = {"model": slow.name, "prompt": PROMPTS[0], "max_tokens": 500, "temperature": 0}
        try:
            return httpx.post(f"{slow.url}/v1/completions", json=body, timeout=5)
        except httpx.ReadTimeout:
            return None

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(client, range(24)))
    refused = [answer for answer in answers if answer is not None]
    assert len(refused) == 24 - 17
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "server_busy")
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_lets_answers_end(slow, number):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, slow, PROMPTS[0], 40)
        until(lambda: slow.metric("awq_running") == 1)
        code, out, err = slow.end(number)
        assert answer.result().usage.completion_tokens == 40
    assert code == 0 and out.endswith("1 answers, 40 tokens written\n") and err == ""


def test_an_end_as_soon_as_it_has_begun(checkpoint):
    with Server(checkpoint) as server:
        assert server.end() == (0, "0 answers, 0 tokens written\n", "")


def test_an_end_cuts_what_takes_too_long(slow):
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(slow.post, "chat/completions", {"messages": USER, "max_tokens": 590, "temperature": 0})
        until(lambda: slow.metric("awq_running") == 1)
        begin = time.monotonic()
        code, _, err = slow.end()
        assert code == 0 and err == "" and 4 < time.monotonic() - begin < 9
        assert whole.result().status_code == 503 and whole.result().json()["error"]["code"] == "server_ends"


def test_mistakes_of_whoever_starts_it(run, checkpoint, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run("--task", "serve", "--checkpoint", checkpoint, "--port", port)
    assert outcome.error == f"--port {port} of 127.0.0.1 cannot be had: Address already in use; give another --port"
    outcome = run("--task", "serve", "--checkpoint", checkpoint, "--host", "no.such.invalid")
    assert outcome.error.startswith("--host no.such.invalid is no address of this machine: ")
    for host in ("a..b", "x" * 70):
        outcome = run("--task", "serve", "--checkpoint", checkpoint, "--host", host)
        assert outcome.error.startswith(f"--host {host} is no address of this machine: ")
    outcome = run("--task", "serve", "--checkpoint", checkpoint, "--port", 0, "--context", CONTEXT + 1)
    assert f"more than the model's context of {CONTEXT}" in outcome.error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    outcome = run("--task", "serve", "--checkpoint", checkpoint, "--port", 0)
    assert outcome.error == "--task serve needs uvicorn; install what it needs: pip install 'run-awq[serve]'"


def test_on_modules_answers_come_one_at_a_time(checkpoint):
    with Server(checkpoint, "--no_flash_attention") as server:
        assert "one answer at a time" in server.first
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda prompt: ask(server, prompt, 5), PROMPTS[:3]))
        assert [answer.usage.completion_tokens for answer in answers] == [5, 5, 5]
        code, _, err = server.end()
    assert code == 0 and json.dumps(err).count("note: one text is written at a time") == 1
