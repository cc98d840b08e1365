"""Several answers to one request, and tokens that a request makes more or less likely."""

from collections import Counter
from contextlib import suppress

import numpy as np
import openai
import pytest

from qlinear.backends.cpu import native
from run_awq import load
from tests.awq_cli.served import Server
from tests.awq_cli.test_serve import PROMPTS, ask, until

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


@pytest.fixture(scope="module")
def opened(served_checkpoint):
    return load(served_checkpoint)


def texts(answer):
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.message.content for choice in answer.choices]


def test_each_answer_is_that_of_a_seed_of_its_own(server):
    """More than there are slots."""
    together = ask(server, PROMPTS[0], n=6, temperature=1, seed=3)
    alone = [ask(server, PROMPTS[0], temperature=1, seed=seed) for seed in range(3, 9)]
    assert texts(together) == [one.choices[0].message.content for one in alone] and len({*texts(together)}) > 1
    assert together.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert len({*texts(ask(server, PROMPTS[0], n=2))}) == 1  # the likeliest tokens are the same
    assert len({*texts(ask(server, PROMPTS[0], n=2, temperature=1))}) == 2


@pytest.mark.parametrize("how", [{}, {"logprobs": True}, {"stop": ["a"]}])
def test_their_pieces_have_their_numbers(server, how):
    whole = ask(server, PROMPTS[1], n=3, temperature=1.5, seed=1, **how)
    found, ends, told = ["", "", ""], Counter(), Counter()
    for chunk in ask(server, PROMPTS[1], n=3, temperature=1.5, seed=1, stream=True, **how):
        (choice,) = chunk.choices
        assert not ends[choice.index]
        found[choice.index] += choice.delta.content or ""
        told[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
        ends[choice.index] += choice.finish_reason is not None
    assert found == texts(whole) and ends == {0: 1, 1: 1, 2: 1}
    assert [told[one.index] for one in whole.choices] == [
        len(one.logprobs.content) if one.logprobs else 0 for one in whole.choices
    ]


def test_completions_have_several_too(server):
    def asked(**how):
        return server.client().completions.create(
            model=server.name, prompt=PROMPTS[2], n=2, seed=5, max_tokens=9, logprobs=0, **how
        )

    whole = asked().choices
    assert [one.index for one in whole] == [0, 1] and whole[0].text != whole[1].text
    found, offsets = ["", ""], [[], []]
    for chunk in asked(stream=True):
        (choice,) = chunk.choices
        found[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert found == [one.text for one in whole] and offsets == [one.logprobs.text_offset for one in whole]


def test_several_prompts_get_what_each_gets_alone(server, opened):
    def asked(prompt, **how):
        return server.client().completions.create(model=server.name, prompt=prompt, seed=5, n=2, **how)

    prompts = list(PROMPTS[:3])
    together, alone = asked(prompts), [asked(prompt) for prompt in prompts]
    assert [one.index for one in together.choices] == list(range(6))
    assert [one.text for one in together.choices] == [choice.text for one in alone for choice in one.choices]
    for field in ("prompt_tokens", "completion_tokens"):
        assert getattr(together.usage, field) == sum(getattr(one.usage, field) for one in alone)
    of_tokens = asked([opened.encode(prompt).tolist() for prompt in prompts])
    assert [one.text for one in of_tokens.choices] == [one.text for one in together.choices]
    found = [""] * 6
    for chunk in asked(prompts, stream=True):
        found[chunk.choices[0].index] += chunk.choices[0].text
    assert found == [one.text for one in together.choices]


def test_all_of_them_end_with_whoever_asked(served_checkpoint):
    with Server(served_checkpoint, "--slots", 1, slowly=True) as slow:
        chunks = ask(slow, PROMPTS[0], 500, n=5, stream=True)
        next(iter(chunks))
        chunks.close()
        until(lambda: slow.metric('awq_ended_total{how="interrupted"}') == 5)
        with suppress(openai.APITimeoutError):
            ask(slow, PROMPTS[0], 500, slow.client(), n=16, timeout=1)
        until(lambda: slow.metric('awq_ended_total{how="interrupted"}') == 21)
        others = ask(slow, PROMPTS[0], 500, n=9, stream=True)
        with pytest.raises(openai.RateLimitError):
            ask(slow, PROMPTS[0], 5, n=16)  # some of which would find room
        others.close()
        until(lambda: slow.metric("awq_running") == 0)
        assert slow.metric('awq_ended_total{how="end"}') + slow.metric('awq_ended_total{how="length"}') == 0


def chosen(model, prompt, weigh, penalty=1.5, count=20):
    """Greedily, in float64, from logits of the whole text each time; the model itself penalizes repetition by 1.5."""
    text = model.encode_prompt(prompt, chat=True).tolist()
    begin = len(text)
    for _ in range(count):
        logits = model.logits(text)[-1].double().numpy()
        for token in {*text}:
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        weigh(logits, text, text[begin:])
        text.append(int(logits.argmax()))
    return model.tokenizer.decode(text[begin:], skip_special_tokens=True)


def openais(presence, frequency):
    def weigh(logits, text, written):
        for token, times in Counter(written).items():
            logits[token] -= presence + frequency * times

    return weigh


def biased(logits, text, written):
    logits[[20, 30]] += [3.5, -2]


@pytest.mark.parametrize(
    "how, weigh",
    [
        (dict(presence_penalty=1.5), openais(1.5, 0)),
        (dict(presence_penalty=-2), openais(-2, 0)),
        (dict(frequency_penalty=0.7), openais(0, 0.7)),
        (dict(frequency_penalty=-0.4, presence_penalty=2), openais(2, -0.4)),
        (dict(logit_bias={"20": 3.5, "30": -2}), biased),
        (dict(presence_penalty=0, frequency_penalty=0, logit_bias={}), openais(0, 0)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_tokens_more_or_less_likely(server, opened, how, weigh):
    found = [ask(server, prompt, **how).choices[0].message.content for prompt in PROMPTS]
    assert found == [chosen(opened, prompt, weigh) for prompt in PROMPTS]


@pytest.mark.parametrize("penalty", [1.9, 1, 0.8])
def test_a_penalty_of_the_request_takes_the_place_of_the_models(server, opened, penalty):
    asked = {"extra_body": {"repetition_penalty": penalty}}
    found = [ask(server, prompt, **asked).choices[0].message.content for prompt in PROMPTS]
    assert found == [chosen(opened, prompt, openais(0, 0), penalty) for prompt in PROMPTS]


def test_a_bias_decides(server, opened):
    best = ask(server, PROMPTS[0], 1).choices[0].message.content
    token = opened.encode(best).tolist()[-1]
    assert ask(server, PROMPTS[0], 1, logit_bias={str(token): -100}).choices[0].message.content != best
    other = opened.encode("class").tolist()[-1]
    assert ask(server, PROMPTS[0], 3, logit_bias={str(other): 100}).choices[0].message.content == "class class class"
    told = ask(server, PROMPTS[0], 1, logit_bias={str(other): 100}, logprobs=True).choices[0].logprobs.content
    prompt = opened.encode_prompt(PROMPTS[0], chat=True)
    expected = opened.logits(prompt)[-1].double().log_softmax(-1)[other]
    assert np.isclose(told[0].logprob, expected.item(), atol=1e-5)  # of what the model makes of it


@pytest.mark.parametrize("how", [{"top_k": 1}, {"min_p": 1}, {"top_k": 1, "min_p": 0.5}])
def test_of_the_likeliest_alone(server, how):
    drawn = ask(server, PROMPTS[3], temperature=2, extra_body=how)
    assert texts(drawn) == texts(ask(server, PROMPTS[3]))


def test_what_asks_for_nothing(server):
    def drawn(how):
        return texts(ask(server, PROMPTS[3], temperature=1, seed=9, extra_body=how))

    assert drawn({}) == drawn({"top_k": 0}) == drawn({"top_k": -1, "min_p": 0, "repetition_penalty": 1.5})
