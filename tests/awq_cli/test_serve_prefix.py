"""Answers that a client begins: as DeepSeek and Mistral, and as vLLM, let it be said."""

import pytest
from transformers import AutoTokenizer

from awq_cli.serving.messages import begun_answer
from awq_cli.serving.refusals import Refusal
from qlinear.backends.cpu import native
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_thoughts import TEMPLATE as THINKS
from tests.awq_cli.test_serve_tools import Speaking, folder  # noqa: F401

needs_kernels = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
USER = {"role": "user", "content": "this"}
BEGUN = {"role": "assistant", "content": "this is"}
WAYS = [
    ([USER, {**BEGUN, "prefix": True}], {}),
    ([USER, BEGUN], {"continue_final_message": True}),
    ([USER, BEGUN], {"continue_final_message": True, "add_generation_prompt": False}),
]


@needs_kernels
@pytest.mark.parametrize("messages, how", WAYS)
def test_an_answer_goes_on(messages, how, server, served_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(served_checkpoint)
    text = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text + BEGUN["content"], add_special_tokens=False)["input_ids"]
    more = {"temperature": 0, "max_tokens": 12}
    made = server.post("chat/completions", {"messages": messages, **how, **more}).json()
    plain = server.post("completions", {"prompt": prompt, **more}).json()
    assert made["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert made["usage"]["prompt_tokens"] == len(prompt)
    turn = server.post("chat/completions", {"messages": [USER, BEGUN], **more}).json()  # which has ended
    assert turn["usage"]["prompt_tokens"] > len(prompt)


@needs_kernels
def test_what_is_begun_is_no_thought_and_in_no_form(folder):  # noqa: F811
    with Speaking(folder, THINKS, special=True) as running:
        asked = {"messages": [USER, {**BEGUN, "prefix": True}], "max_tokens": 3}
        for more, why in (
            ({"reasoning_effort": "high"}, "is about to think there"),
            ({"response_format": {"type": "json_object"}}, "where the answer is to have a form"),
        ):
            refused = running.post("chat/completions", {**asked, **more})
            error = refused.json()["error"]
            assert refused.status_code == 400 and error["param"] == "messages[1]" and why in error["message"]
        assert running.post("chat/completions", asked).status_code == 200


@pytest.mark.parametrize(
    "messages, how, why",
    [
        ([BEGUN], {"continue_final_message": True}, "that follows another message"),
        ([USER], {"continue_final_message": True}, "has to be an assistant's text"),
        ([USER, {**USER, "prefix": True}], {}, "has to be an assistant's text"),
        ([USER, {**BEGUN, "content": "", "prefix": True}], {}, "has to be an assistant's text"),
        ([USER, {**BEGUN, "tool_calls": [{}], "prefix": True}], {}, "has to be an assistant's text"),
        ([USER, BEGUN], {"continue_final_message": True, "add_generation_prompt": True}, "has to be false beside"),
        ([USER, BEGUN], {"add_generation_prompt": False}, "has to be true where"),
        ([USER, {**BEGUN, "prefix": 1}], {}, "true or false"),
    ],
)
def test_what_cannot_be_gone_on_with(messages, how, why):
    with pytest.raises(Refusal, match=why):
        begun_answer({"messages": messages, **how}, messages)


@pytest.mark.parametrize("how", [{}, {"add_generation_prompt": True}, {"continue_final_message": False}])
def test_what_is_to_be_a_turn(how):
    for last in (BEGUN, {**BEGUN, "prefix": False}, USER):
        assert begun_answer({"messages": [USER, last], **how}, [USER, last]) is None
