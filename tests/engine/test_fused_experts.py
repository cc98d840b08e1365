"""The fused decoder's mixtures of experts against float64, and that it reads the chosen experts only."""

import copy
import re

import pytest
import torch
from torch import nn

from architectures.registry import fused_families
from engine.whole import fused_decoder
from qlinear.backends.cpu import native
from qlinear.errors import ModelError, TargetError
from qlinear.grid import Grid
from qlinear.packing import PackedWeight
from qlinear.replace import LinearWeight, replace_linears
from qlinear.solvers.rtn import rtn
from tests.engine.float64_mixture import Apart, Float64Mixture, with_mixtures
from tests.engine.fusing import stepped
from tests.reading import read_all
from tests.tiny import MIXTURE_TYPES, VOCAB, in_bfloat16, tiny_model

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402

GROUP = 32
# Every way of routing, of norms, of dense and sparse blocks side by side.
VARIANTS = [
    ("qwen3_moe", {}),
    ("qwen3_moe", dict(norm_topk_prob=False, num_hidden_layers=4, mlp_only_layers=[2], decoder_sparse_step=2)),
    ("qwen2_moe", {}),
    ("qwen2_moe", dict(norm_topk_prob=True, use_sliding_window=True, sliding_window=16, max_window_layers=1)),
    ("qwen3_moe", dict(use_sliding_window=True, sliding_window=16)),
    ("mixtral", {}),
    ("mixtral", dict(sliding_window=16)),
    ("olmoe", {}),
    ("olmoe", dict(norm_topk_prob=True, num_key_value_heads=4)),
    ("glm4_moe", {}),
    ("glm4_moe", dict(n_group=1, topk_group=1, norm_topk_prob=False, use_qk_norm=False, attention_bias=True)),
    ("dots1", {}),
    ("dots1", dict(sliding_window=16, max_window_layers=1)),
    ("ernie4_5_moe", {}),
    ("ernie4_5_moe", dict(moe_num_shared_experts=0, moe_norm_min=0.9, use_bias=True)),
    ("granitemoe", {}),
]


def tokens_of(length, seed=0):
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def mixture(model_type, bits=4, join=True, backend=None, **options):
    """A tiny bfloat16 model with all but routers and gates on the grid; and one in float64 of the same weights."""
    model = tiny_model(model_type, **options)
    for module in list(model.modules()):
        if hasattr(module, "experts"):
            module.experts = Apart(module.experts)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    float32 = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if model_type == "ernie4_5_moe":  # as in the model as it is loaded
        float32 |= {name: copy.deepcopy(one) for name, one in model.named_parameters() if ".gate." in name}
    model = in_bfloat16(model)
    for name, tensor in float32.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensor)
    exact = copy.deepcopy(model).double()
    replaced = {}
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and not name.endswith("shared_expert_gate"):
            grid = rtn(linear.weight, Grid(bits, GROUP))
            exact.get_submodule(name).weight = nn.Parameter(grid.dequantize().double())
            replaced[name] = LinearWeight(PackedWeight.pack(grid), linear.bias)
    backend = backend or CpuBackend()
    for name in [name for name in replaced if join and name.endswith("gate_proj")]:
        up = name.replace("gate_proj", "up_proj")
        replace_linears(model, {name: replaced.pop(name), up: replaced.pop(up)}, backend)
    for name, weight in replaced.items():
        replace_linears(model, {name: weight}, backend)
    return model, with_mixtures(exact)


def fused(model, max_tokens=128, chunk=32):
    decoder, reason = fused_decoder(model, CpuBackend(), max_tokens, chunk)
    assert decoder is not None, reason
    return decoder


def float_logits(exact, tokens):
    """Logits, and which tokens' experts no rounding to bfloat16 would change.

    Tokens have been seen to go to others where a softmax's scores were apart by 0.0051, and a sigmoid's, which
    roundings move further as they do not share a sum, by 0.0088.
    """
    noise = 0.01 if hasattr(exact.config, "n_group") else 0.0075
    with torch.inference_mode():
        logits = exact(input_ids=tokens.unsqueeze(0)).logits[0]
    return logits, margins(exact) > noise


def margins(exact):
    """By how much each token's last expert won over the next, in the layer where that was least."""
    return torch.stack([module.margins for module in exact.modules() if isinstance(module, Float64Mixture)]).amin(0)


def surest(exact, texts):
    """The text of which the token that is nearest to other experts is farthest."""

    def apart(text):
        float_logits(exact, text)
        return margins(exact).min().item()

    return max(texts, key=apart)


def distance(logits, expected):
    """Root mean square, relative."""
    return ((logits - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("model_type, options", VARIANTS, ids=lambda value: str(value)[:50])
def test_logits_of_every_mixture(model_type, options, bits):
    """A token whose experts are told apart by less than bfloat16's noise may go to others: it is left out."""
    tokens = tokens_of(70)
    model, exact = mixture(model_type, bits, **options)
    expected, sure = float_logits(exact, tokens)
    decoder = fused(model)
    assert sure.sum() > 40
    assert distance(read_all(decoder, tokens)[sure], expected[sure]) < 0.03
    assert distance(stepped(decoder, tokens, 30)[sure[29:]], expected[29:][sure[29:]]) < 0.03


def test_every_family_with_experts_is_among_them():
    known = {model_type for model_type, family in fused_families().items() if family.fused.experts}
    assert known == set(MIXTURE_TYPES) == {model_type for model_type, _ in VARIANTS}


@pytest.mark.parametrize("isa", native.ISAS)
def test_every_instruction_set(isa):
    if isa not in AVAILABLE:
        pytest.skip(f"this machine has no {isa}")
    native.select_isa(isa)
    try:
        model, exact = mixture("glm4_moe")
        tokens = tokens_of(50)
        expected, sure = float_logits(exact, tokens)
        assert distance(read_all(fused(model), tokens)[sure], expected[sure]) < 0.03
    finally:
        native.select_isa("")


@pytest.mark.parametrize("model_type", ["qwen2_moe", "glm4_moe"])
def test_same_bits_at_any_number_of_threads(model_type):
    model, _ = mixture(model_type)
    tokens = tokens_of(90)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            decoder = fused(model, chunk=50)
            results.append([read_all(decoder, tokens), stepped(decoder, torch.cat([tokens, tokens[:8]]), 90)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("chunk", [1, 2, 13, 64])
def test_chunks_do_not_show(chunk):
    model, exact = mixture("qwen3_moe")
    tokens = tokens_of(64)
    _, sure = float_logits(exact, tokens)
    whole = read_all(fused(model, chunk=128), tokens)
    assert distance(read_all(fused(model, chunk=chunk), tokens)[sure], whole[sure]) < 0.02


@pytest.mark.parametrize("count", [1, 5])
def test_experts_that_are_not_chosen_are_not_read(count):
    """Their scales made NaN, nothing changes; those of one that is chosen, and everything is NaN."""
    model, exact = mixture("qwen3_moe", num_experts=32, join=False)
    tokens = surest(exact, [tokens_of(count, seed) for seed in range(100)])
    for layer in exact.model.layers:
        layer.mlp.chosen.clear()
    float_logits(exact, tokens)
    before = read_all(fused(model), tokens).clone()
    for layer, reference in zip(model.model.layers, exact.model.layers, strict=True):
        unread = set(range(32)) - reference.mlp.chosen
        assert len(unread) >= 32 - 3 * count
        for index in unread:
            for linear in layer.mlp.experts.get_submodule(str(index)).children():
                linear.prepared.packed.fill_(0xFF)
    assert torch.equal(read_all(fused(model), tokens), before)
    chosen = model.model.layers[0].mlp.experts.get_submodule(str(min(exact.model.layers[0].mlp.chosen)))
    chosen.down_proj.prepared.packed.fill_(0xFF)
    with pytest.raises(ModelError, match="not finite"):
        read_all(fused(model), tokens)


def test_experts_in_one_tensor_are_read_where_they_lie():
    """A float model, as transformers has it, whose own forward is then right too."""
    model = in_bfloat16(tiny_model("qwen3_moe"))
    exact = copy.deepcopy(model).double()
    tokens = tokens_of(40)
    exact.set_experts_implementation("eager")
    whole = exact(input_ids=tokens.unsqueeze(0)).logits[0].detach()
    for layer in exact.model.layers:
        layer.mlp.experts = Apart(layer.mlp.experts)
    expected, sure = float_logits(with_mixtures(exact), tokens)
    torch.testing.assert_close(expected, whole, rtol=1e-6, atol=1e-6)  # rotations are float32
    decoder = fused(model)
    assert distance(read_all(decoder, tokens)[sure], expected[sure]) < 0.03
    model.model.layers[0].mlp.experts.down_proj.data.zero_()
    assert distance(read_all(decoder, tokens), whole) > 0.1


@pytest.mark.parametrize(
    "model_type, options, reason",
    [
        ("dots1", dict(n_routed_experts=130, n_group=65, topk_group=65), "up to 64 groups .* 130 in 65"),
        ("dots1", dict(n_routed_experts=8, n_group=4, topk_group=1), "chooses 3 of 2"),
        ("olmoe", dict(clip_qkv=2.0), r"limits q, k and v \(`clip_qkv` is 2.0\)"),
    ],
)
def test_what_it_cannot_run_it_says(model_type, options, reason):
    decoder, why = fused_decoder(in_bfloat16(tiny_model(model_type, **options)), CpuBackend(), 128)
    assert decoder is None
    assert re.search(reason, why)
