"""Chat templates that want what is said in parts, and those that pass over it."""

import pytest

from engine.templates import render, render_whole
from qlinear.errors import OptionError
from tests.engine.test_templates import HELLO, refused, with_template

PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_what_is_said_is_given_in_parts_where_a_template_wants_them():
    """As those of models that see pictures do: of a text they make nothing, and say nothing."""
    said = [{"role": "system", "content": "w9"}, {"role": "user", "content": " w7 w8"}]
    assert render(with_template(PARTS), said) == "system: w9;user:  w7 w8;assistant:"
    short = [{"role": "user", "content": "s"}]  # which is in the template, too
    assert render(with_template(PARTS), short) == "user: s;assistant:"
    long = [{"role": "user", "content": "w7 " * 40}]
    assert render(with_template(PARTS), long) == f"user: {'w7 ' * 40};assistant:"
    whole = [*said, {"role": "assistant", "content": "w10"}]
    assert render_whole(with_template(PARTS), [whole]) == ["system: w9;user:  w7 w8;assistant: w10;"]


@pytest.mark.parametrize(
    "template, made",
    [
        ("{{ messages[0].content | e }}.", "a&lt;b?."),
        ("{{ messages[0].content[-2:] }}", "b?"),
        ("{{ messages[0].content[:1] }}", "a"),
        ("{{ messages[0].content.split('<') | last }}", "b?"),
        ("{% if not messages[0].content.startswith('a') %}{{ raise_exception('no') }}{% endif %}yes", "yes"),
        ("<{{ messages[0].content[0].text }}>", "<a<b?>"),
        ("{{ '<' + messages[0].content[0]['text'] }}", "<a<b?"),
        ("{% set said = messages[0].content %}{% if said is string %}{{ raise_exception('no') }}{% endif %}"
         "{{ said[0].text }}", "a<b?"),
    ],
)  # fmt: skip
def test_what_a_template_makes_of_what_is_said(template, made):
    """It may change that, want it in parts, and refuse it as a text; what it makes of another text is not looked at."""
    assert render(with_template(template), [{"role": "user", "content": "a<b?"}]) == made


def test_parts_for_those_who_want_them():
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}"
        "{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    said = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w7"}]
    assert render(with_template(template), said) == "<system>w9<user>w7"


def test_a_template_may_not_pass_over_what_is_said():
    assert "ValueError: it passes over what the model is asked" in refused("hello {{ messages | length }}")
    told = [{"role": "system", "content": "w9"}, *HELLO]
    with pytest.raises(OptionError, match="it passes over what the model is told first"):
        render(with_template("{{ messages[-1].content }}"), told)
    twice = [told[0], {"role": "system", "content": "w11"}, *HELLO]
    assert render(with_template("{{ messages[0].content }} {{ messages[-1].content }}"), twice) == "w9 w7 w8"
    called = [*HELLO, {"role": "assistant", "content": "w9"}, {"role": "tool", "content": "w10"}]
    assert render(with_template("{{ messages[-1].content }}"), called) == "w10"
