"""Answers that have to be JSON of a given schema, from a model that knows nothing of either."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as BytesToText
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from awq_cli.serving.forms import Forms
from awq_cli.serving.refusals import Refusal
from qlinear.backends.cpu import native
from run_awq import load
from tests.awq_cli.conftest import CONTEXT, TEMPLATE, VOCABULARY, Command
from tests.awq_cli.served import Server
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", "newt"]},
        "age": {"type": "integer", "minimum": 3, "maximum": 17},
        "tame": {"type": "boolean"},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 2},
    },
    "required": ["kind", "age", "tame", "names"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True, "schema": SCHEMA}}


def check(text: str) -> None:
    pet = json.loads(text)
    assert set(pet) == {"kind", "age", "tame", "names"} and pet["kind"] in ("cat", "dog", "newt")
    assert type(pet["age"]) is int and 3 <= pet["age"] <= 17 and type(pet["tame"]) is bool
    assert 1 <= len(pet["names"]) <= 2 and all(type(name) is str and len(name) <= 5 for name in pet["names"])


@pytest.fixture(scope="module")
def checkpoint(prose, tmp_path_factory):
    """Of a tokenizer that knows every byte."""
    command = Command(tmp_path_factory.mktemp("forms"))
    texts = Tokenizer(BPE())
    texts.pre_tokenizer, texts.decoder = ByteLevel(add_prefix_space=False), BytesToText()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=ByteLevel.alphabet()
    )
    texts.train_from_iterator([prose], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=texts, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    model = command.folder / "pets"
    tiny_model("llama", vocab_size=VOCABULARY, max_position_embeddings=CONTEXT).save_pretrained(model)
    tokenizer.save_pretrained(model)
    command.result("--task", "quantize", "--model_name", model, "--awq", "none", "--output", "made")
    return command.folder / "made"


@pytest.fixture(scope="module")
def pets(checkpoint):
    with Server(checkpoint) as running:
        yield running


def ask(server, seed, form=FORM, **how):
    messages = [{"role": "user", "content": "A pet?"}]
    how = {"temperature": 1, "seed": seed, "response_format": form, **how}
    return server.client().chat.completions.create(model=server.name, messages=messages, **how)


def test_a_schema(pets):
    answers = [ask(pets, seed).choices[0] for seed in range(6)]
    for answer in answers:
        check(answer.message.content)
        assert answer.finish_reason == "stop"
    assert len({answer.message.content for answer in answers}) > 1
    check(ask(pets, 0, temperature=0).choices[0].message.content)


def test_any_object(pets):
    for seed in range(6):
        (answer,) = ask(pets, seed, {"type": "json_object"}, max_tokens=12).choices
        assert answer.message.content.startswith("{")
        assert answer.finish_reason == "length" or type(json.loads(answer.message.content)) is dict


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_as_another_server_takes_it(kind, pets):
    check(ask(pets, 2, {"type": kind, "schema": SCHEMA}).choices[0].message.content)


def test_a_completion(pets):
    made = pets.client().completions.create(
        model=pets.name, prompt="A pet:", max_tokens=300, seed=1, extra_body={"response_format": FORM}
    )
    check(made.choices[0].text)


def test_streams_and_probabilities(pets):
    whole = ask(pets, 3, logprobs=True, top_logprobs=2)
    told = whole.choices[0].logprobs.content
    assert len(told) == whole.usage.completion_tokens - 1  # the end token is not told of
    text = whole.choices[0].message.content
    assert "".join(one.token for one in told) == text and all(one.logprob < 0 for one in told)
    # of what the model itself makes of them: the likeliest is seldom one that the schema has
    assert any(one.top_logprobs[0].token != one.token for one in told)
    chunks = list(ask(pets, 3, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    check(text)


def test_beside_others(pets):
    def client(number):
        form = FORM if number % 2 else None
        return ask(pets, number, form, max_tokens=120 if number % 2 else 40).choices[0].message.content

    alone = list(map(client, range(6)))
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(client, range(6))) == alone
    for text in alone[1::2]:
        check(text)


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


@pytest.mark.parametrize(
    "form, message",
    [
        ({"type": "xml"}, "has to be of type text, json_object, or json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "that has a schema"),
        ("json_object", "has to be of type"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}, "Invalid type: nonsense"),
        ({"type": "json_schema", "json_schema": {"schema": {"pattern": "(?=a)b", "type": "string"}}}, "look-around"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:1/"}}}, "cannot be followed"),
        ({"type": "json_schema", "json_schema": {"schema": nested(200)}}, "recursion limit"),
    ],
)
def test_forms_that_there_are_not(pets, form, message):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(pets, 1, form)
    error = refused.value.body
    assert (error["param"], error["code"]) == ("response_format", "unsupported_parameter") and message in error[
        "message"
    ]


@pytest.mark.parametrize(
    "schema, what",
    [
        ({"type": "integer", "const": -(2**63)}, "ended the process that it ran in"),
        ({"type": "integer", "multipleOf": 99999999}, "takes more than 3 seconds"),
    ],
)
def test_a_schema_that_the_library_does_not_survive_is_refused(pets, schema, what):
    """The server ended, or answered nobody any more."""
    begun = time.monotonic()
    with pytest.raises(openai.BadRequestError, match=f"has a schema that cannot be followed: {what}"):
        ask(pets, 1, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert time.monotonic() - begun < 30
    check(ask(pets, 1).choices[0].message.content)


def test_a_tokenizer_of_words_has_none(server):
    """It puts spaces between its words, which no schema has."""
    with pytest.raises(openai.BadRequestError, match="response_format takes a model"):
        ask(server, 1)


def test_without_the_library(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with closing(Forms(load(checkpoint))) as forms:
        with pytest.raises(Refusal) as refused:
            forms.read(FORM, 1)
        assert refused.value.status == 400 and "pip install 'run-awq[serve]'" in refused.value.message
        assert forms.read({"type": "text"}, 2) == [None, None]
