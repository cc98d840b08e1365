"""What the server tells of itself and of its answers."""

from pathlib import Path

import httpx
import pytest

from awq_cli.serving.answers import Completion, Usage, Written
from awq_cli.serving.hearing import Likely, Piece, Told
from qlinear.backends.cpu import native
from run_awq import load
from tests.awq_cli.served import Server

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


def test_the_first_token_of_an_answer_that_comes_whole_is_told_of(served_checkpoint):
    def seconds(of):
        (line,) = (line for line in httpx.get(f"{slow.url}/metrics").text.splitlines() if line.startswith(f"{of}_sum"))
        return float(line.split()[1])

    with Server(served_checkpoint, "--slots", 1, slowly=True) as slow:
        messages = [{"role": "user", "content": "this"}]
        made = slow.client().chat.completions.create(model=slow.name, messages=messages, max_tokens=20, temperature=0)
        assert made.usage.completion_tokens == 20
        assert 0 < seconds("awq_first_token_seconds") < seconds("awq_request_seconds") - 15 * 0.03


PAGE = "http://localhost:3000"


def test_pages_in_a_browser_may_ask_where_they_are_let(served_checkpoint, server):
    """As a browser asks: whether it may, and then with its origin."""
    asks = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with Server(served_checkpoint, "--allow_origin", PAGE, "--api_key", "sesame") as opened:
        address = f"{opened.url}/v1/chat/completions"
        may = httpx.options(address, headers=asks)
        assert may.status_code == 200 and may.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in may.headers["access-control-allow-headers"]
        assert httpx.options(address, headers={**asks, "origin": "http://other"}).status_code == 400
        refused = httpx.post(address, headers={"origin": PAGE}, json={})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE
        given = {"origin": PAGE, "authorization": "Bearer sesame"}
        assert httpx.get(f"{opened.url}/v1/models", headers=given).headers["access-control-allow-origin"] == PAGE
        other = httpx.get(f"{opened.url}/v1/models", headers={**given, "origin": "http://other"})
        assert "access-control-allow-origin" not in other.headers
    none = httpx.get(f"{server.url}/v1/models", headers={"origin": PAGE})
    assert none.status_code == 200 and "access-control-allow-origin" not in none.headers


@pytest.mark.parametrize("origin", ["localhost:3000", "http://localhost:3000/", "http://a/b", "HTTP://A", ""])
def test_what_is_no_origin(run, served_checkpoint, origin):
    outcome = run("--task", "serve", "--checkpoint", served_checkpoint, "--port", 0, "--allow_origin", origin)
    assert outcome.error == f"--allow_origin {origin} is no origin of pages; give one as http://localhost:3000, or *"


def test_the_folder_that_it_is_started_in(served_checkpoint, monkeypatch):
    monkeypatch.chdir(served_checkpoint)
    with Server(Path(".")) as server:
        assert [model.id for model in server.client().models.list()] == [served_checkpoint.name]


def test_a_prompt_of_nothing_but_a_line_end(server, served_checkpoint):
    made = server.client().completions.create(model=server.name, prompt="\n", temperature=0, max_tokens=3)
    expected = load(served_checkpoint).encode("\n")
    assert made.usage.prompt_tokens == len(expected)


def test_tokens_that_are_no_text_by_themselves_are_told_apart():
    """Each was the same broken character, of which the last alone was told."""
    halves = [
        Likely("\N{REPLACEMENT CHARACTER}", [0xF0, 0x9F], -1.0),
        Likely("\N{REPLACEMENT CHARACTER}", [0x98], -2.0),
    ]
    real = Likely("\N{REPLACEMENT CHARACTER}", list("\N{REPLACEMENT CHARACTER}".encode()), -3.0)
    choice = Completion("m").whole([Written([Piece("", [Told(halves[0], [*halves, real])])], "stop")], Usage(1, 1))[
        "choices"
    ][0]
    assert choice["logprobs"]["tokens"] == ["bytes:\\xf0\\x9f"]
    assert choice["logprobs"]["top_logprobs"] == [
        {"bytes:\\xf0\\x9f": -1.0, "bytes:\\x98": -2.0, "\N{REPLACEMENT CHARACTER}": -3.0}
    ]


def test_how_much_of_a_prompt_was_known(served_checkpoint):
    """As its first answer found it, of several; those after it know all of it but its last token."""
    with Server(served_checkpoint, "--slots", 2) as server:
        asked = {"messages": [{"role": "user", "content": "this is " * 20}], "max_tokens": 2, "n": 3}
        first, second = (server.post("chat/completions", asked).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == second["prompt_tokens"] - 1
    assert first["completion_tokens_details"]["reasoning_tokens"] == 0
