"""Conversations on a terminal and through a pipe."""

import io
import json
import os
import shutil
import signal
import time

import pytest
from transformers import AutoTokenizer

from awq_cli.console import Console, Terminal
from awq_cli.tasks.chat import Words
from tests.awq_cli.conftest import Command
from tests.awq_cli.talking import Talking

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }} {{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }} assistant{% endif %}"
)
HELLO = "the value of this"


@pytest.fixture(scope="module")
def chatty(rounded, tmp_path_factory):
    """A checkpoint with a chat template that uses no word twice, so that what was said shows in what is answered."""
    folder = tmp_path_factory.mktemp("chatty") / "chatty"
    shutil.copytree(rounded, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"no_repeat_ngram_size": 1}')
    return folder


def transcript(folder) -> list[dict]:
    return json.loads((folder / "said.json").read_text())["turns"]


def test_a_conversation(tmp_path, chatty):
    """Answers are streamed, figures follow, and a second turn has only itself read."""
    with Talking(tmp_path, "--checkpoint", chatty, "--max_new_tokens", 12, "--json", "said.json") as terminal:
        shown = [terminal.say(HELLO), terminal.say("a class")]
        terminal.type("\x04")
        assert terminal.ended() == 0
    turns = transcript(tmp_path)
    assert [turn["prompt"] for turn in turns] == [HELLO, "a class"]
    for turn, text in zip(turns, shown, strict=True):
        figures = f"[12 tokens, {1e3 / turn['ms_per_token']:,.1f} tokens/s, first after {turn['ttft_ms'] / 1e3:.2f} s]"
        assert text == f"{turn['response']}\n{figures}\nnote: the answer was cut at --max_new_tokens 12"
        assert (turn["new_tokens"], turn["ended"], turn["left"]) == (12, "length", 0)
    assert turns[0]["response"] != turns[1]["response"]
    # <s> user, four words, <s> assistant; then the last token of the answer, <s> user, two words, <s> assistant
    assert [turn["read_tokens"] for turn in turns] == [8, 1 + 6]
    assert [turn["prompt_tokens"] for turn in turns] == [8, 8 + 12 + 6]
    assert terminal.text.endswith("2 answers, 24 tokens, on cpu/" + terminal.text.rpartition("cpu/")[2])


def test_an_interrupt_ends_the_answer_and_not_the_conversation(tmp_path, chatty):
    settings = ("--checkpoint", chatty, "--max_new_tokens", 400, "--json", "said.json")
    with Talking(tmp_path, *settings, slowly=0.05) as terminal:
        terminal.type(f"{HELLO}\r")
        terminal.expect("\n")
        terminal.expect(" ")  # a word is out
        terminal.type("\x03")
        assert terminal.expect("\n>", seconds=10).endswith(", cut by ^C]")
        terminal.type("/stats\r")
        terminal.expect("\n1 answer: ")
        terminal.expect("\n>")
        terminal.type("a class\r")
        terminal.expect("\n")
        terminal.expect(" ")
        terminal.type("\x03")
        terminal.expect("\n>", seconds=10)
        terminal.type("not sent\x03")
        terminal.expect("\n>")
        terminal.type("\x03")
        terminal.expect("^C again leaves, as ^D does")
        terminal.expect("\n>")
        terminal.type("\x03")
        assert terminal.ended() == 0
    first, second = transcript(tmp_path)
    assert first["ended"] == second["ended"] == "interrupted"
    assert 1 < first["new_tokens"] < 100 and len(first["response"].split()) >= 1
    assert second["prompt"] == "a class" and second["read_tokens"] == 7  # what was read before it counts still


def test_an_interrupt_before_the_first_word_takes_the_turn_back(tmp_path, chatty):
    settings = ("--checkpoint", chatty, "--max_new_tokens", 3, "--json", "said.json")
    with Talking(tmp_path, *settings, slowly=3) as terminal:
        terminal.type(f"{HELLO}\r")
        terminal.expect("\n")
        time.sleep(0.5)  # until the terminal is no longer read key by key
        terminal.type("\x03")
        assert "nothing was written, so nothing was said" in terminal.expect("\n>", seconds=2)
        terminal.say("a class")
        terminal.type("/quit\r")
        assert terminal.ended() == 0
    (turn,) = transcript(tmp_path)
    assert (turn["prompt"], turn["prompt_tokens"], turn["read_tokens"]) == ("a class", 6, 6)


def test_oldest_turns_leave_a_small_context(tmp_path, chatty):
    settings = ("--checkpoint", chatty, "--context", 64, "--max_new_tokens", 10, "--json", "said.json")
    with Talking(tmp_path, *settings) as terminal:
        shown = [terminal.say(f"{HELLO} {word}") for word in ("a", "class", "of", "the")]
        assert "there is room for" not in shown[0]
        too_long = terminal.say("word " * 70)
        terminal.type("\x04")
        assert terminal.ended() == 0
    turns = transcript(tmp_path)
    left = [turn["left"] for turn in turns]
    # five words are 9 tokens in the template, an answer about 10
    assert (
        turns[0]["prompt_tokens"] == 9 and 25 < turns[1]["prompt_tokens"] < 30 and sum(left) > 0 and left[:2] == [0, 0]
    )
    for turn, text in zip(turns, shown, strict=True):
        said = "note: the oldest turn has left: a --context 64 has no room for more\n"
        said = said if turn["left"] == 1 else said.replace("turn has", f"{turn['left']} turns have")
        assert text.startswith(said) == (turn["left"] > 0) and turn["prompt_tokens"] + 10 <= 64
    assert " ".join(too_long.split()).endswith(
        "the message and what stands around it have 74 tokens, which leaves no room for an answer in --context 64; "
        "shorten it"
    )


def test_save_and_load(tmp_path, chatty):
    settings = ("--checkpoint", chatty, "--max_new_tokens", 8, "--system", "a class", "--json", "said.json")
    (tmp_path / "photo.txt").write_text("precious")
    (tmp_path / "half.json").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    with Talking(tmp_path, *settings) as terminal:
        first = terminal.say(HELLO).splitlines()[0]
        assert terminal.say("/save kept.json") == "saved in kept.json: 1 turn"
        assert terminal.say("/save photo.txt") == "photo.txt is there already and no conversation; give another name"
        assert terminal.say("/save no/such/place") == "no/such/place cannot be written: No such file or directory"
        assert terminal.say("/save .").startswith(". cannot be written: ")
        assert terminal.say("/save") == "/save needs the name of a file"
        answer = terminal.say("of").splitlines()[0]
        assert terminal.say("/reset") == "forgotten; the system text stays"
        assert terminal.say("/system") == "the model is told nothing first from now on"
        assert terminal.say("/load photo.txt").startswith("photo.txt is not JSON: ")
        assert terminal.say("/load half.json") == "half.json holds no conversation: the last message has no answer"
        assert terminal.say("/load lost.json") == "lost.json: no such file"
        assert terminal.say("/load kept.json") == "1 turn from kept.json"
        assert terminal.say("of").splitlines()[0] == answer
        assert terminal.say("/save kept.json") == "saved in kept.json: 2 turns"
        terminal.type("/quit\r")
        assert terminal.ended() == 0
    system, *said = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert system == {"role": "system", "content": "a class"}
    assert [message["content"] for message in said] == [HELLO, first, "of", answer]
    assert [message["role"] for message in said] == ["user", "assistant"] * 2
    assert (tmp_path / "photo.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["half.json", "kept.json", "photo.txt", "said.json"]
    result = json.loads((tmp_path / "said.json").read_text())
    assert result["system"] == "a class" and [turn["prompt"] for turn in result["turns"]] == [HELLO, "of", "of"]


def test_lines_fit_into_sixty_columns(tmp_path, chatty):
    with Talking(tmp_path, "--checkpoint", chatty, "--max_new_tokens", 4, columns=60) as terminal:
        own = [terminal.say(line) for line in ("/help", "/stats", "/reset", "/nothing", f"{HELLO} word", "/system x")]
        terminal.type("\x04")
        assert terminal.ended() == 0
    assert "/system TEXT  what the model is told first; alone: nothing" in own[0].splitlines()
    assert own[3] == "there is no /nothing; /help lists what there is"
    assert all(len(line) <= 60 for text in own for line in text.splitlines())
    assert all(f"/{name}" in own[0] for name in ("reset", "system", "save", "load", "stats", "quit"))


def test_several_lines_and_what_was_typed_before(tmp_path, chatty):
    """Alt+Enter begins a line; what is pasted is one turn with its lines; the arrow brings the last one back."""
    settings = ("--checkpoint", chatty, "--max_new_tokens", 2, "--json", "said.json")
    with Talking(tmp_path, *settings) as terminal:
        for keys in (
            "the\x1b\rvalue\r",
            "\x1b[200~of\r\nthis\x1b[201~\r",
            "clas\x7fss\x01a \r",
            "\x1b[A\r",
            " /help\r",
        ):
            terminal.type(keys)
            terminal.expect("[2 tokens")
            terminal.expect("\n>")
        terminal.type("\x04")
        assert terminal.ended() == 0
    prompts = [turn["prompt"] for turn in transcript(tmp_path)]
    assert prompts == ["the\nvalue", "of\nthis", "a class", "a class", " /help"]


def test_a_signal_leaves_the_terminal_as_it_was(tmp_path, chatty):
    with Talking(tmp_path, "--checkpoint", chatty) as terminal:
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 128 + signal.SIGTERM
    assert terminal.text.rstrip().endswith("terminated") and "Traceback" not in terminal.text


def piped(run: Command, chatty, text: str, monkeypatch, *more):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    settings = ("--checkpoint", chatty, "--max_new_tokens", 6, "--json", "said.json")
    return run("--task", "chat", *settings, *more)


def test_turns_through_a_pipe(run, chatty, monkeypatch):
    """Answers alone are the output, and the end of the input is the end."""
    outcome = piped(run, chatty, f"{HELLO}\n\n/reset\na class", monkeypatch, "--quiet")
    turns = transcript(run.folder)
    assert (outcome.code, outcome.notes) == (0, [])
    assert outcome.out == f"{turns[0]['response']}\nforgotten\n{turns[1]['response']}\n"
    assert [turn["prompt"] for turn in turns] == [HELLO, "a class"] and turns[1]["prompt_tokens"] == 6
    noted = piped(run, chatty, HELLO, monkeypatch).notes
    assert noted[0].startswith("[6 tokens, ") and noted[1] == "note: the answer was cut at --max_new_tokens 6"
    assert piped(run, chatty, "", monkeypatch).out == "" and transcript(run.folder) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("/nothing", "there is no /nothing; /help lists what there is"),
        ("/load lost.json", "lost.json: no such file"),
        ("word " * 700, "the message and what stands around it have 704 tokens, which leaves no room for an answer in "
         "--context 600; shorten it"),
    ],
)  # fmt: skip
def test_what_cannot_be_ends_a_pipe(run, chatty, monkeypatch, said, message):
    assert piped(run, chatty, said, monkeypatch).error == message
    assert run.left() == []


def test_what_a_model_is_told_and_where_it_stops(run, chatty, monkeypatch):
    plain = piped(run, chatty, HELLO, monkeypatch).out
    words = plain.split()
    assert piped(run, chatty, HELLO, monkeypatch, "--stop", f"{words[2][:1]}", "--stop", words[4]).out != plain
    (turn,) = transcript(run.folder)
    assert turn["ended"] == "stop" and words[2][:1] not in turn["response"]
    told = piped(run, chatty, HELLO, monkeypatch, "--system", "a class").out
    (turn,) = transcript(run.folder)
    assert told != plain and turn["prompt_tokens"] == 8 + 4
    (run.folder / "told.txt").write_text("a class")
    assert piped(run, chatty, HELLO, monkeypatch, "--system", "@told.txt").out == told
    drawn = [piped(run, chatty, HELLO, monkeypatch, "--temperature", 5, "--seed", seed).out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_refused(run, chatty, rounded, monkeypatch):
    assert run("--task", "chat", "--checkpoint", rounded).error == (
        "--task chat: this model's tokenizer has no chat template, so that it cannot hold a conversation; have it go "
        "on with a text: --task decode"
    )
    assert run("--task", "chat", "--checkpoint", chatty, "--context", 601).error == (
        "conversations of --context need 601 tokens, more than the model's context of 600; ask for fewer"
    )
    assert run("--task", "chat", "--checkpoint", chatty, "--stop", "").error == "--stop '' is empty; give some text"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert "the standard input is not UTF-8 text: " in run("--task", "chat", "--checkpoint", chatty).error
    as_in_c = dict(encoding="utf-8", errors="surrogateescape")  # as Python reads it in a locale of no language
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), **as_in_c))
    assert "the standard input is not Unicode text: byte 0xe9" in run("--task", "chat", "--checkpoint", chatty).error


def test_no_standard_input_has_nothing_to_say(run, chatty, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    done = run("--task", "chat", "--checkpoint", chatty)
    assert (done.code, done.out) == (0, "")


def test_a_conversation_of_halves_of_characters_is_not_taken(run, chatty, monkeypatch):
    half = {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "this"}]}
    (run.folder / "half.json").write_text(json.dumps(half))
    assert "message 1 is not Unicode text" in piped(run, chatty, "/load half.json", monkeypatch).error


def test_what_is_thought_is_dim_on_a_terminal_and_no_output_of_a_pipe():
    dim = "\x1b[2mI\x1b[0m\x1b[2m\tsee\ufffd\x1b[0m\n\nYes."
    for terminal, colours, shown in (
        (True, "standard", dim), (True, None, "I\tsee\ufffd\n\nYes."), (False, None, "Yes.")
    ):  # fmt: skip
        console = Console(quiet=True)
        console.out = Terminal(file=io.StringIO(), force_terminal=terminal, color_system=colours)
        for words in (Words("I", True), Words("\tsee\x07", True), Words(""), Words("Yes"), Words(".")):
            console.watch(words)
        assert console.out.file.getvalue() == shown
