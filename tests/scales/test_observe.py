"""Running a model block by block shows what the model itself computes, and leaves no trace on it."""

from functools import partial

import pytest
import torch

from architectures.linears import block_linears
from architectures.registry import find_family
from qlinear.errors import CalibrationError
from scales import fold
from scales.awq import watched_modules
from scales.calls import record_calls
from scales.observe import observe_block, observe_head, observe_inputs
from scales.search import module_error
from scales.statistics import PANEL, InputStatistics
from tests.tiny import MODEL_TYPES, VARIANTS, known_of, tiny_model, tiny_tokens

SAMPLES, LENGTH, N_WATCHED = 3, 12, 2  # longer than the tiny models' sliding window of 8


def decoder_blocks(model) -> list:
    return list(model.get_submodule(find_family(model.config).blocks))


@torch.no_grad()
def plain_run(model, tokens):
    """What forward hooks see in the model's own forward: (block inputs, block outputs, linear inputs in float64)."""
    blocks = decoder_blocks(model)
    inputs, outputs = [[] for _ in blocks], [[] for _ in blocks]
    seen = [{name: [] for name in block_linears(block)} for block in blocks]
    handles = []

    def keep_rows(rows, _, args):
        rows.append(args[0].double().flatten(0, -2))

    def keep_block(index, _, args, kwargs, output):
        inputs[index].append(args[0].clone() if args else kwargs["hidden_states"].clone())
        outputs[index].append((output[0] if isinstance(output, tuple) else output).clone())

    for index, block in enumerate(blocks):
        handles.append(block.register_forward_hook(partial(keep_block, index), with_kwargs=True))
        for name, linear in block_linears(block).items():
            handles.append(linear.register_forward_pre_hook(partial(keep_rows, seen[index][name])))
    for row in tokens:
        model(input_ids=row.unsqueeze(0), use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs, outputs, [{name: torch.cat(rows) for name, rows in block.items()} for block in seen]


def observe_all(model, tokens):
    """Every block's observation, each fed with the outputs of the one before, and the first block's inputs."""
    blocks = decoder_blocks(model)
    hidden, calls = record_calls(model, blocks, tokens)
    first, observations = hidden, []
    for block, call in zip(blocks, calls, strict=True):
        seen = observe_block(
            block, block_linears(block), watched_modules(known_of(model, block)), hidden, call, N_WATCHED
        )
        observations.append(seen)
        hidden = seen.outputs
    return first, observations


def assert_close(found, expected) -> None:
    """To float32's rounding of sums that may be in another order."""
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= 5e-6 * expected.double().abs().max()


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_blocks_chained_reproduce_the_model(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    tokens = tiny_tokens(SAMPLES, LENGTH)
    inputs, outputs, linear_inputs = plain_run(model, tokens)
    hidden, observations = observe_all(model, tokens)

    for found, expected in zip(hidden, inputs[0], strict=True):
        assert_close(found, expected)
    for index, (block, seen) in enumerate(zip(decoder_blocks(model), observations, strict=True)):
        for found, expected in zip(seen.outputs, outputs[index], strict=True):
            assert_close(found, expected)
        assert seen.statistics.keys() == linear_inputs[index].keys()
        for name, x in linear_inputs[index].items():
            statistics = seen.statistics[name]
            assert statistics.tokens == SAMPLES * LENGTH
            assert_close(statistics.mean_abs, x.abs().mean(0))
            assert_close(statistics.gram, x.t() @ x)
        for name, samples in seen.samples.items():
            module = block.get_submodule(name)
            assert len(samples) == N_WATCHED
            # What was kept is the module's own output, untouched by what the block did with it afterwards.
            size = sum(float(output.square().sum()) for _, _, output in samples)
            assert module_error(module, samples) <= 1e-12 * size, name


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_the_inputs_alone_are_those_of_the_whole_forward(model_type, overrides):
    """And where the block ends with its last linear, as most do, that one is not multiplied out."""
    model = tiny_model(model_type, **overrides)
    blocks, tokens = decoder_blocks(model), tiny_tokens(SAMPLES, LENGTH)
    hidden, calls = record_calls(model, blocks, tokens)
    block, linears, finished = blocks[0], block_linears(blocks[0]), []
    whole = observe_block(block, linears, (), hidden, calls[0], 0).statistics
    for name, linear in linears.items():
        linear.register_forward_hook(lambda *_, name=name: finished.append(name))
    alone = observe_inputs(block, linears, hidden, calls[0])
    assert alone.keys() == whole.keys()
    for name in whole:
        assert alone[name].tokens == SAMPLES * LENGTH
        assert torch.equal(alone[name].gram, whole[name].gram) and torch.equal(alone[name].sum_abs, whole[name].sum_abs)
    assert len(finished) == SAMPLES * (len(linears) - 1)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_what_scaled_linears_see_is_known_without_looking_again(model_type, overrides):
    model = tiny_model(model_type, **overrides).requires_grad_(False)
    family, blocks = find_family(model.config), decoder_blocks(model)
    hidden, calls = record_calls(model, blocks, tiny_tokens(SAMPLES, LENGTH))
    block, linears = blocks[0], block_linears(blocks[0])
    seen = observe_block(block, linears, (), hidden, calls[0], 0)
    for edge in family.edges:
        generator = torch.Generator().manual_seed(len(edge.prev))
        vector = torch.randn(fold.scale_length(block, edge, model.config), generator=generator).exp()
        fold.apply_scale(block, edge, vector, model.config)
        seen.divide(edge.layers, fold.consumer_scale(edge, vector, model.config))
    for name, again in observe_inputs(block, linears, hidden, calls[0]).items():
        assert_close(seen.statistics[name].gram, again.gram)
        assert_close(seen.statistics[name].mean_abs, again.mean_abs)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_the_model_is_left_as_it_was(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    tokens = tiny_tokens(SAMPLES, LENGTH)
    with torch.no_grad():
        before = model(tokens).logits
    observe_all(model, tokens)
    for name, module in model.named_modules():
        assert "forward" not in vars(module), name
        assert not module._forward_hooks and not module._forward_pre_hooks, name
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_the_first_block_needs_weights(model_type):
    # Four blocks, so that some stand between the first and the last; gemma3's count lies deeper in its config.
    overrides = {} if model_type == "gemma3" else dict(num_hidden_layers=4)
    model, hollow = (tiny_model(model_type, **overrides) for _ in range(2))
    tokens = tiny_tokens(SAMPLES, LENGTH)
    _, outputs, _ = plain_run(model, tokens)
    for block in decoder_blocks(hollow)[1:]:
        block.to("meta")
    hidden, calls = record_calls(hollow, decoder_blocks(hollow), tokens)
    for index, (block, call) in enumerate(zip(decoder_blocks(model), calls, strict=True)):
        hidden = [call(block, x) for x in hidden]
        for found, expected in zip(hidden, outputs[index], strict=True):
            assert_close(found, expected)


def test_a_model_of_one_block():
    model = tiny_model("llama", num_hidden_layers=1)
    tokens = tiny_tokens(SAMPLES, LENGTH)
    _, outputs, _ = plain_run(model, tokens)
    _, (seen,) = observe_all(model, tokens)
    assert_close(torch.cat(seen.outputs), torch.cat(outputs[0]))


def test_nothing_stays_behind_when_the_model_fails():
    model = tiny_model("llama")
    blocks = decoder_blocks(model)
    with pytest.raises(IndexError):
        record_calls(model, blocks, torch.full((1, 4), 10**6))
    with pytest.raises(RuntimeError):
        _, calls = record_calls(model, blocks, tiny_tokens(1, 4))
        observe_block(blocks[0], block_linears(blocks[0]), ("mlp", ""), [torch.zeros(1, 4, 7)], calls[0], 1)
    for name, module in model.named_modules():
        assert "forward" not in vars(module), name
        assert not module._forward_hooks and not module._forward_pre_hooks, name


def test_linears_that_read_one_tensor_share_its_statistics():
    model = tiny_model("llama")
    _, (seen, _) = observe_all(model, tiny_tokens(SAMPLES, LENGTH))
    shared = seen.statistics
    q, k, v = (shared[f"self_attn.{name}_proj"] for name in "qkv")
    assert q is k is v
    assert shared["mlp.gate_proj"] is shared["mlp.up_proj"] is not q


def test_a_block_wider_than_its_hidden_states():
    """Hidden states kept in bfloat16 between blocks; the arithmetic within one is the block's own."""
    model = tiny_model("llama")
    block = decoder_blocks(model)[0]
    hidden, calls = record_calls(model, decoder_blocks(model), tiny_tokens(SAMPLES, LENGTH))
    narrow = [x.to(torch.bfloat16) for x in hidden]
    seen = observe_block(block, block_linears(block), ("",), narrow, calls[0], N_WATCHED)
    for found, x in zip(seen.outputs, narrow, strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, calls[0](block, x.float()).to(torch.bfloat16))


def test_a_gram_matrix_wider_than_what_is_summed_at_a_time():
    x = torch.randn(40, 2500, generator=torch.Generator().manual_seed(0))
    seen = InputStatistics.empty(2500)
    for part in x.split(16):
        seen.add(part.unsqueeze(0))
    seen.complete()
    assert_close(seen.gram, x.double().t() @ x.double())
    assert torch.equal(seen.gram, seen.gram.t())


def test_a_sample_longer_than_what_is_summed_at_a_time():
    x = torch.randn(2500, 40, generator=torch.Generator().manual_seed(0))
    seen = InputStatistics.empty(40)
    seen.add(x.unsqueeze(0))
    seen.complete()
    assert_close(seen.gram, x.double().t() @ x.double())


def test_the_time_of_the_block_is_told_from_that_of_the_statistics(monkeypatch):
    """A clock by which adding up an input takes 100 s, and everything else a second a look."""
    now = [0.0]

    def look() -> float:
        now[0] += 1
        return now[0]

    def add(*_) -> None:
        now[0] += 100

    monkeypatch.setattr("time.perf_counter", look)
    monkeypatch.setattr(InputStatistics, "add", add)
    model = tiny_model("llama")
    _, (seen, _) = observe_all(model, tiny_tokens(SAMPLES, LENGTH))
    added = SAMPLES * 4  # q, k and v see one input, and so do gate and up
    assert seen.statistics_seconds == 101 * added
    assert seen.forward_seconds == added + 1


def test_what_the_head_sees_is_known_whole():
    """The Gram matrix is mirrored for the head, too, where it is wider than what is summed at a time."""
    model = tiny_model("llama", hidden_size=PANEL + 64, vocab_size=96).float()
    tokens, blocks = tiny_tokens(SAMPLES, LENGTH) % 96, decoder_blocks(model)
    _, calls = record_calls(model, blocks, tokens)
    last: list[torch.Tensor] = []
    hook = blocks[-1].register_forward_hook(lambda _, __, output: last.append(output))
    with torch.no_grad():
        seen = [model.model(row.unsqueeze(0)).last_hidden_state for row in tokens]  # past the last norm
    hook.remove()
    statistics = observe_head(model, model.lm_head, blocks, calls[0], last)
    x = torch.cat(seen).reshape(-1, PANEL + 64).double()
    assert statistics.tokens == SAMPLES * LENGTH
    assert_close(statistics.gram, x.t() @ x)
    assert_close(statistics.mean_abs, x.abs().mean(0))


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])  # the last one's square is too large
def test_inputs_that_are_not_finite_are_refused(value):
    seen = InputStatistics.empty(8)
    seen.add(torch.ones(3, 8))
    seen.add(torch.eye(8) * value)
    with pytest.raises(CalibrationError, match="infinite or NaN"):
        seen.complete()
