"""Chat templates without `transformers`: what they see, and so what they make, is the same."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from checkpoints.plain_tokenizer import PlainTokenizer, agrees

EVERYTHING = (
    "{{ bos_token }}|{{ tools | tojson }}|{{ documents }}|{{ add_generation_prompt }}|{{ think }}|"
    "{{ think is defined }}"
    "{% for m in messages %}|{{ m | tojson(sort_keys=true) }}{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "now", "description": "l\u00e4uft <b>"}}]
CALLS = [{"id": "abcdefghi", "type": "function", "function": {"name": "now", "arguments": {"zone": "\u00fc"}}}]
USER = {"role": "user", "content": "Hi"}
TALKS = [
    [USER],
    [{"role": "system", "content": "x"}, USER],
    [USER, {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "tool", "content": "12"}],
    [USER, {"role": "assistant", "content": "a", "reasoning": "r"}, USER],
    [USER, {"role": "assistant", "content": "a", "thinking": "t"}, USER],
    [USER, {"role": "assistant", "content": "a", "reasoning_content": "c", "thinking": "t", "reasoning": "r"}, USER],
]
SEEN = [{}, {"tools": TOOLS}, {"think": False}, {"tools": TOOLS, "think": True}, {"bos_token": "other"}]


@pytest.fixture
def save(tmp_path):
    def save(template):
        words = Tokenizer(WordLevel({"<s>": 0, "a": 1, "?": 2}, unk_token="?"))
        made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="?")
        made.chat_template = template
        made.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize("seen", SEEN, ids=lambda seen: ",".join(seen))
@pytest.mark.parametrize("messages", TALKS)
def test_a_template_sees_what_it_does_in_transformers(save, messages, seen):
    folder = save(EVERYTHING)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    how = dict(tokenize=False, add_generation_prompt=True, **seen)
    made = PlainTokenizer(folder).apply_chat_template(messages, **how)
    assert made == tokenizer.apply_chat_template(messages, **how) and agrees(folder, tokenizer)


def test_of_several_templates_that_for_tools_is_taken_where_there_are_some(save):
    folder = save(None)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "?", "chat_template": ['
        '{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools {{ tools | length }}"}]}'
    )
    plain, tokenizer = PlainTokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    for seen, made in (({}, "plain"), ({"tools": TOOLS}, "tools 1"), ({"tools": []}, "tools 0")):
        assert plain.apply_chat_template([USER], **seen) == made
        assert tokenizer.apply_chat_template([USER], tokenize=False, **seen) == made
