"""`--draft` in every task that has it: the same answers, figures beside them, and refusals of one line."""

import io
import json
import shutil
import sys

import pytest
from transformers import AutoTokenizer

from qlinear.backends.cpu import native
from run_awq import AwqError, load
from tests.awq_cli.served import Server

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

PROMPTS = ("the value of this the value of this the value", "a class is")
HOW = ("--raw", "--max_new_tokens", 60)
DRAWN = ("--temperature", 0.6, "--top_k", 20, "--seed", 4)


@pytest.fixture(scope="module")
def other(rounded, tmp_path_factory):
    """The same weights, with two words of the tokenizer changed for each other."""
    folder = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(rounded, folder)
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    assert '"the":' in text
    path.write_text(text.replace('"the":', '"theThe":', 1), encoding="utf-8")
    return folder


def decoded(run, checkpoint, *more):
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    result = run.result("--task", "decode", "--checkpoint", checkpoint, *prompts, *HOW, *more)
    kept = ("response", "new_tokens", "ended", "prompt_tokens")
    return [{name: one[name] for name in kept} for one in result["responses"]], result["responses"]


@pytest.mark.parametrize("draw", [(), DRAWN], ids=["greedy", "drawn"])
def test_decode(run, rounded, served_checkpoint, draw):
    for checkpoint in (rounded, served_checkpoint):  # without a penalty, and with one
        plain, responses = decoded(run, checkpoint, *draw)
        assert [one["draft"] for one in responses] == [None, None]
        for draft in ("lookup", rounded):
            found, responses = decoded(run, checkpoint, *draw, "--draft", draft)
            assert found == plain
            for one in responses:
                drafted = one["draft"]
                assert 0 <= drafted["accepted"] <= drafted["proposed"]
                assert drafted["tokens_per_pass"] == pytest.approx((one["new_tokens"] - 1) / drafted["passes"])


def test_the_line_at_the_end(run, rounded):
    """Of the model as its own draft, all that is proposed is right."""
    command = ("--task", "decode", "--checkpoint", rounded, "--prompt", "a class", *HOW)
    outcome = run(*command, "--draft", rounded, "--json", "drafted.json")
    last = outcome.out.splitlines()[-1]
    assert outcome.code == 0 and last.startswith("draft: ") and last.endswith(" tokens a pass")
    accepted, _, proposed = last.split()[1:4]
    assert accepted == proposed
    assert "draft: " not in run(*command).out


def test_chat(run, served_checkpoint, monkeypatch):
    turns = []
    for draft in ((), ("--draft", "lookup")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join((*PROMPTS, PROMPTS[0])) + "\n"))
        how = ("--checkpoint", served_checkpoint, "--max_new_tokens", 40, *DRAWN, *draft)
        outcome = run("--task", "chat", *how, "--json", "said.json")
        assert outcome.code == 0
        figures = [line for line in outcome.notes if line.startswith("[")]
        assert len(figures) == 3 and all((" tokens a pass, first after" in line) == bool(draft) for line in figures)
        turns.append(json.loads((run.folder / "said.json").read_text())["turns"])
    plain, drafted = turns
    for one, two in zip(plain, drafted, strict=True):
        assert one.pop("draft") is None and two.pop("draft")["passes"] > 0
        for time in ("ttft_ms", "ms_per_token"):
            one.pop(time), two.pop(time)
        assert one == two


def test_serve(served_checkpoint):
    model = load(served_checkpoint)
    with Server(served_checkpoint, "--draft", "lookup", "--slots", 2) as server:
        for prompt in PROMPTS:
            expected = "".join(model.stream(prompt, chat=True, max_new_tokens=60))
            answer = server.client().chat.completions.create(
                model=server.name, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=60
            )
            assert answer.choices[0].message.content == expected
        assert server.metric("awq_draft_proposed_total") >= server.metric("awq_draft_accepted_total") >= 0
        code, out, _ = server.end()
    assert code == 0 and out.splitlines()[-1].startswith("draft: ")


def test_from_python(rounded):
    plain = load(rounded).generate(PROMPTS, max_new_tokens=60)
    for draft in ("lookup", rounded, str(rounded)):
        model = load(rounded, draft=draft)
        assert model.generate(PROMPTS, max_new_tokens=60) == plain
        one, two = (model.stream(prompt, max_new_tokens=60) for prompt in PROMPTS)  # both at once
        first = [(next(one), next(two)) for _ in range(3)]
        begun = ["".join(pieces) for pieces in zip(*first, strict=True)]
        assert [begun[0] + "".join(one), begun[1] + "".join(two)] == plain
    with pytest.raises(AwqError, match="^`draft` has to be a name or a path, not int$"):
        load(rounded, draft=7)


REFUSED = [
    (["--target", "aie_emu"], "--draft lookup is for --target cpu, not aie_emu; leave --draft out"),
    (["--no_flash_attention"], "--draft lookup means nothing with --no_flash_attention; leave one of them out"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_where_it_cannot_be(run, rounded, options, message):
    command = ("--task", "decode", "--checkpoint", rounded, "--prompt", "a", "--draft", "lookup", *options)
    assert run(*command).error == message


def test_drafts_that_are_none(run, rounded, other):
    command = ("--task", "decode", "--checkpoint", rounded, "--prompt", "a", "--draft")
    error = run(*command, other).error
    token = AutoTokenizer.from_pretrained(rounded).convert_tokens_to_ids("the")
    assert error == (
        f"--draft {other} has another tokenizer than this model: only this model has 'the' as token {token}; give a "
        f"checkpoint of the same family, or lookup"
    )
    assert run(*command, "lookups").error.startswith("no checkpoint quantized_models/lookups-w")
    assert run("--task", "benchmark", "--draft", "lookup").error == (
        "--draft means nothing for --task benchmark; leave it out"
    )
