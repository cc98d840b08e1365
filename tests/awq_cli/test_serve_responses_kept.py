"""How much is kept of answers."""

import tracemalloc

import pytest

from awq_cli.serving.refusals import Refusal
from awq_cli.serving.responses.kept import Kept

ASKED = [{"role": "user", "content": "a"}]


def response(number: int, text: str = "x") -> dict:
    return {"id": f"resp_{number}", "output": [{"id": f"msg_{number}", "text": text}]}


def here(kept: Kept, number: int) -> bool:
    found = []
    for given in ({"previous_response_id": f"resp_{number}"}, {"input": [{"id": f"msg_{number}"}]}):
        try:
            kept.conversation(given)
            found.append(True)
        except Refusal as refusal:
            assert refusal.status == 404
            found.append(False)
    assert len(set(found)) == 1, found
    return found[0]


def test_the_oldest_go_first():
    kept = Kept(most=1000)
    for number in range(20):
        kept.keep(ASKED, response(number, "x" * 100))
    known = [number for number in range(20) if here(kept, number)]
    assert known == list(range(known[0], 20)) and 3 <= len(known) <= 9
    kept.forget("resp_19")
    assert not here(kept, 19) and here(kept, 18)
    kept.keep(ASKED, response(20, "x" * 2000))
    assert not any(here(kept, number) for number in range(21))
    kept.keep(ASKED, response(21))
    assert here(kept, 21)


def test_what_is_kept_takes_no_more_memory_than_it_counts():
    """Lists of lists take twenty times what they take as JSON."""
    kept = Kept(most=4 << 20)
    tracemalloc.start()
    try:
        for number in range(40):
            kept.keep([{**ASKED[0], "junk": [[] for _ in range(50_000)]}], response(number))
        assert tracemalloc.get_traced_memory()[0] < 6 << 20
    finally:
        tracemalloc.stop()
    assert here(kept, 39) and not here(kept, 0)


def test_a_conversation_that_goes_on_stays():
    """All of it: what nobody asks for goes before its first turn does."""
    kept = Kept(most=2000)
    kept.keep(ASKED, response(0, "x" * 100))
    kept.keep(ASKED, {**response(1, "x" * 100), "previous_response_id": "resp_0"})
    for number in range(2, 30):
        kept.keep(ASKED, response(number))
        kept.conversation({"previous_response_id": "resp_1", "input": "b"})
    assert not here(kept, 2) and here(kept, 29)


@pytest.mark.parametrize("name", ["resp_1", 1, ["resp_0"], {}])
def test_what_is_not_there(name):
    kept = Kept()
    kept.keep(ASKED, response(0))
    with pytest.raises(Refusal) as refused:
        kept.conversation({"previous_response_id": name})
    assert refused.value.status == 404 and refused.value.parameter == "previous_response_id"


def test_items_that_an_input_refers_to_stay_with_it():
    """Though the answer that they are of is forgotten."""
    kept = Kept()
    kept.keep(ASKED, response(0))
    kept.keep(kept.asked({"input": [{"type": "item_reference", "id": "msg_0"}]}), response(1))
    kept.forget("resp_0")
    items, before = kept.conversation({"previous_response_id": "resp_1", "input": "b"})
    assert items == [response(0)["output"][0], response(1)["output"][0], {"role": "user", "content": "b"}]
    assert before == 2
