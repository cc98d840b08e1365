"""A look at one block of each kind before anything is done: what is settled by it, and what is refused."""

from types import SimpleNamespace

import pytest
from torch import nn
from transformers import AutoConfig

from architectures.anatomy import Found
from architectures.experts import take_apart
from benchmarks.models.tiny import Row
from benchmarks.models.tiny import tiny_model as model_of
from qlinear.errors import ModelError
from qlinear.progress import Note
from quantization.examine import kinds
from quantization.plan import examine_job, make_job
from quantization.recipe import Recipe
from tests.quantized import word_tokenizer
from tests.tiny import VOCAB, tiny_model


def looked_at(model, watch=lambda event: None, **fields):
    """The job after a look at a model that holds its weights already."""
    source = SimpleNamespace(
        name="tiny", model=model.requires_grad_(False), config=model.config, tokenizer=word_tokenizer(),
        materialize=lambda *_, **__: None, release=lambda *_, **__: None,
    )  # fmt: skip
    return examine_job(make_job(source, Recipe(group_size=32, **fields).settled(), watch))


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, hidden_states, state=None):
        out = self.down(self.up(self.norm(hidden_states)))
        return (hidden_states + out if state is None else hidden_states + out + state), out


class Passing(nn.Module):
    """Each block is given what the one before computed, beside its hidden states."""

    def __init__(self):
        super().__init__()
        self.config = AutoConfig.for_model("llama", num_hidden_layers=2, vocab_size=VOCAB, hidden_size=64)
        self.config.model_type = "passing"
        self.embed, self.parts = nn.Embedding(VOCAB, 64), nn.ModuleList([Part(), Part()])
        self.head = nn.Linear(64, VOCAB, bias=False)

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache=False):
        hidden, state = self.embed(input_ids), None
        for part in self.parts:
            hidden, state = part(hidden, state)
        return self.head(hidden)


class Alone(Passing):
    """The same blocks, given hidden states alone."""

    def forward(self, input_ids, use_cache=False):
        hidden = self.embed(input_ids)
        for part in self.parts:
            hidden, _ = part(hidden)
        return self.head(hidden)


class Remembering(Part):
    def __init__(self):
        super().__init__()
        self.last = 0.0

    def forward(self, hidden_states, state=None):
        out, second = super().forward(hidden_states, state)
        out, self.last = out + self.last, self.last + 1
        return out, second


@pytest.mark.parametrize("fields", [dict(awq="run"), dict(awq="auto"), dict(awq="none", solver="gptq")])
def test_blocks_that_hand_each_other_more_are_refused_in_one_line(fields):
    with pytest.raises(ModelError) as error:
        looked_at(Passing(), **fields)
    assert str(error.value) == (
        "the decoder blocks of tiny cannot be run one by one (parts.0: the blocks hand each other more than hidden "
        "states); `awq=none` with `solver=rtn` rounds without running them"
    )


def test_and_rounded_where_nothing_has_to_run():
    job = looked_at(Passing(), awq="none", solver="rtn")
    assert not job.plan.blocks
    assert job.plan.units == ("parts.0.up", "parts.0.down", "parts.1.up", "parts.1.down")


def test_blocks_that_hand_on_hidden_states_alone_are_run():
    job = looked_at(Alone(), awq="run")
    assert job.plan.blocks and job.plan.units == ("parts.0", "parts.1")
    edges = {(edge.prev, edge.layers) for edge in job.plan.anatomies[0].edges}
    assert edges == {("norm", ("up",)), ("up", ("down",))}
    assert job.plan.anatomies[0] is job.plan.anatomies[1] and job.plan.anatomies[0].found is Found.PROBE


def test_a_block_that_keeps_what_it_has_read_is_refused():
    model = Alone()
    model.parts = nn.ModuleList([Remembering(), Remembering()])
    with pytest.raises(ModelError, match="parts.0: it keeps something of what it has read"):
        looked_at(model, awq="run")


@pytest.mark.parametrize(
    ("name", "same"),
    [("lfm2", {0: 0, 1: 1, 2: 0}), ("nemotron_h", {0: 0, 1: 1, 2: 2, 3: 3}), ("bamba", {0: 0, 1: 1})],
)
def test_a_hybrid_has_one_anatomy_a_kind(name, same):
    model = model_of(Row(name))
    take_apart(model)  # its experts, where it has any, hold no weights: only shapes are looked at
    job_kinds = kinds(model, tuple(unit for unit in _units(model)))
    assert job_kinds == same


def _units(model) -> tuple[str, ...]:
    from architectures.blocks import find_blocks

    return find_blocks(model)


def test_of_a_hybrid_each_kind_has_its_own_edges():
    job = looked_at(model_of(Row("lfm2")), awq="run")
    conv, attention, again = job.plan.anatomies
    assert conv is again and conv is not attention
    assert "conv.in_proj" in conv.linears and "self_attn.q_proj" in attention.linears
    assert {edge.prev for edge in conv.edges} != {edge.prev for edge in attention.edges}


def test_without_awq_no_edges_are_wanted_but_a_block_is_run_all_the_same():
    job = looked_at(tiny_model("llama"), awq="none", solver="gptq")
    assert all(anatomy.edges == () and len(anatomy.linears) == 7 for anatomy in job.plan.anatomies)


def test_what_stays_float_is_named_and_much_of_it_is_told():
    events: list = []
    job = looked_at(tiny_model("llama", hidden_size=48, head_dim=12), events.append, awq="none", solver="rtn")
    assert {(kept.name, kept.reason, kept.count) for kept in job.kept} == {
        (f"model.layers.*.{name}", "no group size divides its 48 inputs", 2)
        for name in (*(f"self_attn.{part}_proj" for part in "qkvo"), "mlp.gate_proj", "mlp.up_proj")
    }
    kept = 48 * 48 * 2 + 48 * 24 * 2 + 2 * 48 * 128
    assert job.kept_share == pytest.approx(kept / (kept + 48 * 128))
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note.startswith(f"{job.kept_share:.0%} of the decoder's weights stay in bfloat16: ")
    assert sum(entry.bytes for entry in job.kept) == 2 * 2 * kept


def test_what_nothing_can_scale():
    """Norms that are the residual too, and GELUs: nothing is left but rounding."""

    class Flat(Part):
        def forward(self, hidden_states, state=None):
            hidden = self.norm(hidden_states)
            out = self.down(nn.functional.gelu(self.up(hidden)))
            return hidden + out, out

    model = Alone()
    model.parts = nn.ModuleList([Flat(), Flat()])
    with pytest.raises(ModelError) as error:
        looked_at(model, awq="run")
    assert str(error.value) == (
        "AWQ finds nothing to scale in tiny: none of its layers can be rescaled without changing it; use `awq=none` "
        "with `solver=gptq`"
    )
    events: list = []
    job = looked_at(model, events.append, awq="auto")
    assert job.recipe.awq.value == "none" and job.recipe.solver == "gptq"
    assert any("going on with `awq=none` and `solver=gptq`" in event.text for event in events)
