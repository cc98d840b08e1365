"""Clients that go away, send what is no request, or ask for too much, beside others that want their answers."""

import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

from benchmarks.serving.server import Server
from benchmarks.table import Table

CLIENTS = 8
PROMPTS = tuple(f"{begin} {end}" for begin in ("Once upon a time", "The sum of", "In 1905") for end in ("there", "it"))
# The last of them are requests for a model that there is not.
MALFORMED = (b"{", b"[]", b"\xff\x00", b"[" * 50_000, b'{"model": 1}', b"null", b'{"prompt": {}}')
EVERY = 10.0  # seconds between two looks at memory

# Of each prompt, what follows it, and what answers it.
Expected = dict[str, tuple[str, str]]


@dataclass
class Tally:
    """kinds: requests by what was done; wrong: in words, what should not have been; resident: bytes at each look."""

    kinds: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


def soak(server: Server, minutes: float, seed: int) -> Tally:
    tally, end = Tally(), time.monotonic() + 60 * minutes
    expected = {prompt: (_answer(server, prompt, 24), _chat_answer(server, prompt)) for prompt in PROMPTS}
    threads = [
        threading.Thread(target=_client, args=(server, tally, expected, random.Random(1000 * seed + number), end))
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.resident.append(server.resident_bytes())
        time.sleep(min(EVERY, max(0.1, end - time.monotonic())))
    for _ in range(100):  # those who went away last
        if server.metric("awq_running") == server.metric("awq_waiting") == 0:
            break
        time.sleep(0.1)
    else:
        tally.wrong.append("texts are still written that nobody waits for")
    for prompt in PROMPTS:
        if (_answer(server, prompt, 24), _chat_answer(server, prompt)) != expected[prompt]:
            tally.wrong.append(f"{prompt!r} has another answer in the end")
    if failed := server.metric("awq_failed_total"):
        tally.wrong.append(f"{failed:.0f} texts ended with an error")
    tally.resident.append(server.resident_bytes())
    return tally


def _answer(server: Server, prompt: str, tokens: int) -> str:
    answer = httpx.post(f"{server.url}/v1/completions", json=server.body(prompt, tokens, False), timeout=600)
    return answer.json()["choices"][0]["text"]


def _chat_answer(server: Server, prompt: str) -> str:
    """Through the model's chat template."""
    body = {**server.body(prompt, 24, False), "messages": [{"role": "user", "content": prompt}]}
    del body["prompt"]
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600)
    return answer.json()["choices"][0]["message"]["content"]


def _client(server: Server, tally: Tally, expected: Expected, chance: random.Random, end: float) -> None:
    deeds = (
        _whole,
        _streamed,
        _streamed,
        _chat,
        _chat,
        _goes_away,
        _goes_away,
        _hangs_up,
        _malformed,
        _too_long,
        _large,
    )
    while time.monotonic() < end:
        deed = chance.choice(deeds)
        try:
            wrong = deed(server, expected, chance)
        except Exception as error:  # of a client: the server is not to be the reason
            wrong = f"{type(error).__name__}: {error}"
        tally.kinds[deed.__name__.strip("_").replace("_", " ")] += 1
        if wrong:
            tally.wrong.append(f"{deed.__name__}: {wrong}")


def _whole(server: Server, expected: Expected, chance: random.Random) -> str | None:
    prompt = chance.choice(PROMPTS)
    return _compared(_answer(server, prompt, 24), expected[prompt][0])


def _chat(server: Server, expected: Expected, chance: random.Random) -> str | None:
    prompt = chance.choice(PROMPTS)
    return _compared(_chat_answer(server, prompt), expected[prompt][1])


def _compared(found: str, wanted: str) -> str | None:
    return None if found == wanted else f"{found!r} instead of {wanted!r}"


def _streamed(server: Server, expected: Expected, chance: random.Random) -> str | None:
    prompt, text = chance.choice(PROMPTS), ""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=server.body(prompt, 24, True), timeout=600) as got:
        lines = [line for line in got.iter_lines() if line.startswith("data: {")]
    text = "".join(httpx.Response(200, content=line[6:]).json()["choices"][0]["text"] for line in lines)
    return _compared(text, expected[prompt][0])


def _goes_away(server: Server, expected: Expected, chance: random.Random) -> str | None:
    body, left = server.body(chance.choice(PROMPTS), 400, True), chance.randrange(1, 12)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=600) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number >= left:
                return None
    return "it came to its end"


def _hangs_up(server: Server, expected: Expected, chance: random.Random) -> str | None:
    """In the middle of the request, or before the answer."""
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    content = httpx.Request("POST", server.url, json=server.body(chance.choice(PROMPTS), 300, False)).content
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=60) as half:
        half.sendall((head + content)[: chance.choice((5, len(head), len(head) + 9, len(head) + len(content)))])
        time.sleep(chance.random() / 5)
    return None


def _malformed(server: Server, expected: Expected, chance: random.Random) -> str | None:
    return _refused(server, (400, 404), chance.choice(MALFORMED))


def _too_long(server: Server, expected: Expected, chance: random.Random) -> str | None:
    body = server.body("word " * chance.randrange(9000, 60000), 5, False)
    return _refused(server, (400, 413), httpx.Request("POST", server.url, json=body).content)


def _large(server: Server, expected: Expected, chance: random.Random) -> str | None:
    return _refused(server, (413,), b" " * (5 << 20))


def _refused(server: Server, statuses: tuple[int, ...], content: bytes) -> str | None:
    answer = httpx.post(f"{server.url}/v1/completions", content=content, timeout=600)
    is_error = answer.json().get("error", {}).get("message")
    return None if answer.status_code in statuses and is_error else f"{answer.status_code} {answer.text[:200]}"


def table(tally: Tally) -> Table:
    rows = [[kind, f"{count:,}"] for kind, count in sorted(tally.kinds.items())]
    looks = tally.resident
    after = looks[len(looks) // 4 :]  # once everything has been used
    rows += [
        ["all", f"{sum(tally.kinds.values()):,}"],
        ["wrong", str(len(tally.wrong))],
        ["MB at first", f"{looks[0] / 1e6:.1f}"],
        ["MB after a quarter", f"{after[0] / 1e6:.1f}"],
        ["MB at most", f"{max(looks) / 1e6:.1f}"],
        ["MB in the end", f"{looks[-1] / 1e6:.1f}"],
    ]
    return Table("requests of 8 clients, and memory of the server", ["", "count"], rows)
