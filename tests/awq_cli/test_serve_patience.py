"""Connections that say nothing, or not enough, are closed; those that are waited on are not."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn

from awq_cli.serving.patience import patient_protocol

SECONDS = 0.4
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def slow_app(scope, receive, send):
    """Answers after longer than anybody may be silent."""
    await asyncio.sleep(3 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address():
    listening = socket.create_server(("127.0.0.1", 0))
    how = dict(http=patient_protocol(SECONDS), ws="none", lifespan="off", log_config=None, timeout_keep_alive=60)
    server = uvicorn.Server(uvicorn.Config(slow_app, **how))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listening]))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join()


def closed_after(connection) -> float:
    connection.settimeout(20)
    start = time.monotonic()
    assert connection.recv(1) == b""
    return time.monotonic() - start


@pytest.mark.parametrize("said", [b"", b"GET", HEAD])
def test_who_does_not_ask_is_not_waited_for(address, said):
    with socket.create_connection(address) as connection:
        connection.sendall(said)
        assert SECONDS / 2 < closed_after(connection) < 10


def test_an_answer_may_take_longer_and_another_may_be_asked_for(address):
    with socket.create_connection(address) as connection:
        connection.settimeout(20)
        for _ in range(2):
            connection.sendall(HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):
                piece = connection.recv(4096)
                assert piece, answer
                answer += piece
        connection.sendall(HEAD)  # and half of a third
        assert SECONDS / 2 < closed_after(connection) < 10
