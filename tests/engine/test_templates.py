"""Chat templates: what a good one makes, and one line for whatever a bad one does."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import templates
from engine.templates import Renderer, render, render_whole
from engine.text import encode_prompt
from qlinear.errors import OptionError
from tests.quantized import word_tokenizer

HELLO = [{"role": "user", "content": "w7 w8"}]


def with_template(template):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def refused(template) -> str:
    with pytest.raises(OptionError) as error:
        render(with_template(template), HELLO)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_prompt_is_that_of_the_tokenizers_own_method():
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ ['a', 'b'] | tojson }}{% endif %}"
    )
    tokenizer = with_template(template)
    assert render(tokenizer, HELLO) == '<s>user: w7 w8\n["a", "b"]'
    assert render(tokenizer, HELLO) == tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    assert render(with_template({"default": template, "rag": "no"}), HELLO) == render(tokenizer, HELLO)


BEGIN, END = "`chat`: the model's chat template", "; mend it, or use `chat=False`"
FAILING = [
    ("{{ raise_exception('only\nsystem roles') }}", f"{BEGIN} cannot be used: TemplateError: only system roles{END}"),
    ("{% if %}", f"{BEGIN} cannot be used: TemplateSyntaxError: Expected an expression, got 'end of statement block'"
     f"{END}"),
    ("{{ 'a' | shout }}", f"{BEGIN} cannot be used: TemplateAssertionError: No filter named 'shout'.{END}"),
    ("{{ messages[0].content.nothing.more }}", f"{BEGIN} cannot be used: UndefinedError: 'str object' has no attribute "
     f"'nothing'{END}"),
    ("{{ 1 // 0 }}", f"{BEGIN} cannot be used: ZeroDivisionError: integer division or modulo by zero{END}"),
    ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", f"{BEGIN} cannot be used: RecursionError: maximum "
     f"recursion depth exceeded{END}"),
    ({"rag": "a", "tool_use": "b"}, "`chat`: the model has chat templates rag, tool_use, but none is called default; "
     "use `chat=False`"),
    (None, "`chat`: this model's tokenizer has no chat template; use `chat=False`"),
    ("{{ 'a' * 20000000 }}", f"{BEGIN} makes 20000000 characters of a prompt, more than 10000000{END}"),
    ("{{ 'a' * 10**10 }}", f"{BEGIN} takes more than 1 GiB of memory{END}"),
    ("{{ '%10000000000d' % 1 }}", f"{BEGIN} takes more than 1 GiB of memory{END}"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "message"), FAILING)
def test_one_line_for_what_a_template_does(template, message):
    assert refused(template)[: len(message)] == message


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ messages | tojson(indent=10**8) }}",
        "{{ 'a' * 10**10 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_it_takes_no_more_time_than_it_is_given(template, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 1)
    start = time.monotonic()
    assert refused(template).startswith(f"{BEGIN} takes more than 1 ")
    assert time.monotonic() - start < 30  # of which a busy machine takes the most


def test_nothing_is_left_of_the_other_process(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    before, processes = os.listdir("/proc/self/fd"), _children()
    refused("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    assert _children() == processes  # other tests may have left some of their own
    assert len(os.listdir("/proc/self/fd")) == len(before)


def _children() -> set[str]:
    """Of this thread, those that nobody has waited for too."""
    return _children_of(os.getpid())


def _children_of(process: int | str) -> set[str]:
    return set(Path(f"/proc/{process}/task/{process}/children").read_text().split())


def test_a_tokenizer_that_ends_its_process(capfd):
    """In native code, say; what it wrote there is nobody's."""

    def abort(*_, **__):
        os.write(2, b"terminate called\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(OptionError, match=f"^{BEGIN} ended the process that it ran in{END}$"):
        render(SimpleNamespace(chat_template="a", apply_chat_template=abort), HELLO)
    assert capfd.readouterr().err == ""


def test_one_that_nobody_is_left_to_end_has_an_end():
    """Its process has so many seconds of a processor, whoever was to end it having been killed before."""
    asked = SimpleNamespace(
        chat_template="a",
        apply_chat_template=lambda said, **_: f"{said[0]['content']} {resource.getrlimit(resource.RLIMIT_CPU)[0]}",
    )
    assert render(asked, HELLO) == f"{HELLO[0]['content']} {templates.SECONDS + 5}"


def _endless():
    """One that is rendered for ever where the message says so."""
    return with_template("{% if messages[0].content == 'on' %}{% for i in range(99999) %}{% for j in range(99999) %}"
                         "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}")  # fmt: skip


def test_a_helper_renders_what_its_tokenizer_does_and_goes_on_after_failures(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 3)
    before, processes = os.listdir("/proc/self/fd"), _children()
    renderer = Renderer(_endless())
    try:
        assert renderer([{"role": "user", "content": "w7"}]) == "w7"
        with pytest.raises(OptionError, match="takes more than 3 seconds; mend it"):
            renderer([{"role": "user", "content": "on"}])
        assert renderer([{"role": "user", "content": "w8"}]) == "w8"
        (helper,) = _children() - processes
        assert not _children_of(helper)
    finally:
        renderer.close()
    assert _children() == processes and len(os.listdir("/proc/self/fd")) == len(before)


def test_threads_render_by_a_helper_that_never_had_them():
    """Each with its own messages, while another thread holds a lock that a copy of this process would wait for."""
    held = threading.Lock()
    tokenizer = SimpleNamespace(
        chat_template="a", apply_chat_template=lambda messages, **_: held.acquire(timeout=20) and messages[0]["content"]
    )
    renderer = Renderer(tokenizer)
    try:
        with held, ThreadPoolExecutor(4) as pool:
            texts = [f"text {number}" for number in range(12)]
            made = list(pool.map(lambda text: renderer([{"role": "user", "content": text}]), texts))
        assert made == texts
    finally:
        renderer.close()


def test_a_helper_that_somebody_ended_is_made_again():
    processes = _children()
    renderer = Renderer(with_template("{{ messages[0].content }}"))
    try:
        (helper,) = _children() - processes
        os.kill(int(helper), signal.SIGKILL)
        assert renderer(HELLO) == "w7 w8"
        assert _children() - processes != {helper}
    finally:
        renderer.close()
    assert _children() == processes


def test_a_helper_holds_no_connections():
    """Whoever is at the other end would never be told that it was closed."""
    ours, theirs = socket.socketpair()
    renderer = Renderer(with_template("{{ messages[0].content }}"))
    try:
        assert renderer(HELLO) == "w7 w8"
        ours.close()
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
    finally:
        theirs.close()
        renderer.close()


ORPHAN = """
import os, sys
from types import SimpleNamespace
from engine.templates import Renderer
renderer = Renderer(SimpleNamespace(chat_template="a", apply_chat_template=None))
print(renderer._helper.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_helper_ends_with_a_process_that_was_killed():
    run = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL and run.stderr == ""
    helper, until = Path(f"/proc/{int(run.stdout)}/status"), time.monotonic() + 60
    while helper.exists() and "State:\tZ" not in helper.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("caf\udce9", "byte 0xe9 at character 4"),
        ("\udcff\udcfe", "byte 0xff at character 1"),
        ("a \ud83d b", "half a character, U+D83D, at character 3"),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_that_is_no_unicode(prompt, what, chat):
    with pytest.raises(OptionError) as error:
        encode_prompt(with_template("{{ messages[0].content }}"), prompt, chat)
    assert str(error.value) == f"`prompt` is not Unicode text: {what}; mend it"


DATED = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }} {% endfor %}"
TALKS = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [{"role": "user", "content": "c"}]]


def test_whole_conversations_are_the_same_on_any_day():
    assert render_whole(with_template(DATED), TALKS) == ["01 Jan 2026 a b ", "01 Jan 2026 c "]


def test_conversations_that_a_template_refuses():
    template = (
        "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
    )
    assert render_whole(with_template(template), TALKS) == [None, "c"]


def test_conversations_have_an_end(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    with pytest.raises(OptionError, match="takes more than 0.5 seconds"):
        render_whole(with_template("{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2), TALKS)
