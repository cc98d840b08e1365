"""The module decoder against `generate` and whole forwards of `transformers`, for each way a model keeps its past."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.model import About, Model
from engine.modules import ModuleDecoder, check_causal, first_position
from engine.whole import ModuleRunner
from qlinear.errors import ModelError
from tests.reading import ids, read, read_all, read_last

VOCAB, NEW, PROMPT, ROOM = 128, 24, 10, 48

_SIZES = dict(
    vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=128, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
_MAMBA = dict(_SIZES, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_chunk_size=8)
_SSM = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, state_size=16)
_DELTA = dict(
    _SIZES, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
    linear_value_head_dim=16, layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
_EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
# Past 20 tokens, all angles are others.
_LONGROPE = dict(
    rope_type="longrope", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=20,
    short_factor=[1.0] * 8, long_factor=[1.7 + 0.3 * i for i in range(8)],
)  # fmt: skip
_DYNAMIC = dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)
_MLA = dict(q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, head_dim=8)

# What is kept of the past -> a model that keeps it so. Their types are those that `generate` treats apart, or that a
# decoder which handed every model its `past_key_values` got wrong.
KINDS = {
    "keys and values": ("llama", _SIZES),
    "a window": ("mistral", dict(_SIZES, sliding_window=8)),
    "windows in some layers": ("gemma2", dict(_SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=8)),
    "latent keys": ("deepseek_v3", dict(_SIZES, **_MLA, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
                                        topk_group=1, moe_intermediate_size=32, num_key_value_heads=4)),
    "cache_params of one": ("mamba", _SSM),
    "cache_params of another": ("mamba2", dict(_SSM, num_heads=8, head_dim=16, n_groups=1, chunk_size=8)),
    "cache_params of a third": ("falcon_mamba", _SSM),
    "states and keys": ("bamba", dict(_MAMBA, attn_layer_indices=[1])),
    "states and keys in one layer": ("falcon_h1", dict(_MAMBA, mamba_d_ssm=128)),
    "states and keys among experts": ("jamba", dict(_SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
                                                    mamba_dt_rank=4, mamba_d_state=8)),
    "states with the last row alone in mind": ("zamba2", dict(
        _SIZES, num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2, mamba_headdim=16, mamba_ngroups=1,
        n_mamba_heads=8, attention_hidden_size=128, attention_head_dim=32, num_key_value_heads=4, mamba_d_state=8,
        chunk_size=8, adapter_rank=8)),
    "convolutions": ("lfm2", dict(_SIZES, layer_types=["conv", "full_attention"])),
    "deltas": ("qwen3_5_text", _DELTA),
    "deltas among experts": ("qwen3_next", dict(_DELTA, **_EXPERTS, shared_expert_intermediate_size=32)),
    "recurrences": ("recurrent_gemma", dict(_SIZES, head_dim=16, attention_window_size=8,
                                            block_types=["recurrent", "attention"])),
    "a list of states": ("rwkv", dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64)),
    "a cache of its own": ("minimax", dict(_SIZES, **_EXPERTS, head_dim=16, block_size=8,
                                           layer_types=["linear_attention", "full_attention"])),
    "biases of distance": ("mpt", dict(vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4, max_seq_len=256)),
    "biases as long as what was read": ("falcon", dict(_SIZES, alibi=True, ffn_hidden_size=128)),
    "learned positions": ("gpt_neo", dict(vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, window_size=8,
                                          attention_types=[[["global", "local"], 1]], max_position_embeddings=256)),
    "nothing": ("openai-gpt", dict(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=256)),
    "keys that length turns": ("phi3", dict(_SIZES, rope_parameters=_LONGROPE, original_max_position_embeddings=20,
                                            max_position_embeddings=80)),
    "keys that the longest text turned": ("llama", dict(_SIZES, rope_parameters=_DYNAMIC, max_position_embeddings=20)),
}  # fmt: skip
CACHES = pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])


def random_model(model_type: str, config: dict) -> torch.nn.Module:
    """In float32, with norms that are not one and biases that are not zero; the same each time."""
    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **deepcopy(config))
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise / max(1, parameter.shape[-1]) ** 0.5)
    return model.eval()


def text_of(seed: int, length: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def generated(kind: str, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The text that a fresh model writes greedily, its prompt included, and the logits of each step."""
    model = random_model(*KINDS[kind])
    out = model.generate(
        prompt.unsqueeze(0), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=NEW,
        eos_token_id=10**6, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return out.sequences[0], torch.cat(list(out.logits)).float()


def whole(kind: str, text: torch.Tensor) -> torch.Tensor:
    """One forward of a fresh model over all of a text."""
    with torch.no_grad():
        return random_model(*KINDS[kind])(text.unsqueeze(0), use_cache=False).logits[0]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@CACHES
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_that_of_generate(kind, static):
    """One prompt after another, of which the second is the shorter: nothing of the first is left."""
    decoder = ModuleDecoder(random_model(*KINDS[kind]), ROOM, static)
    for seed, length in ((1, PROMPT + 5), (2, PROMPT)):
        text, expected = generated(kind, text_of(seed, length))
        steps = range(length, length + NEW)
        found = [read_last(decoder, text[:stop], 0 if stop == length else stop - 1).clone() for stop in steps]
        assert_same(torch.stack(found), expected)
        assert torch.stack(found).argmax(-1).tolist() == text[length:].tolist()


@CACHES
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_scored_is_one_whole_forward(kind, static):
    """After a longer one that began alike, too: what can be kept of it is, and what cannot is read again."""
    decoder, long = ModuleDecoder(random_model(*KINDS[kind]), ROOM, static), text_of(3, 40)
    assert_same(read_all(decoder, long), whole(kind, long))
    other = torch.cat([long[:PROMPT], text_of(4, 15)])
    expected = whole(kind, other)[PROMPT:]
    assert_same(read(decoder, other, known=PROMPT), expected)
    short = other[: PROMPT + 1]
    assert_same(read_last(decoder, short, known=PROMPT), whole(kind, short)[-1])


@pytest.mark.parametrize("kind", ["cache_params of another", "states and keys", "a list of states", "deltas"])
def test_what_was_read_is_not_read_again(kind):
    model, text = random_model(*KINDS[kind]), text_of(1, PROMPT + 1)
    decoder, lengths = ModuleDecoder(model, ROOM, static_cache=False), []
    model.register_forward_pre_hook(lambda _, __, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True)
    read_last(decoder, text[:PROMPT])
    read_last(decoder, text, PROMPT)
    assert lengths == [PROMPT, 1]


_ROBERTA = dict(
    vocab_size=VOCAB, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=64, pad_token_id=1, is_decoder=True,
)  # fmt: skip


@CACHES
@pytest.mark.parametrize("model_type", ["roberta", "camembert", "xmod"])
def test_positions_are_counted_as_the_model_was_trained(model_type, static):
    """From the one behind the padding's id, in a whole text and in one written token by token."""
    extra = dict(default_language="en_XX") if model_type == "xmod" else {}
    model, text = random_model(model_type, _ROBERTA | extra), text_of(1, 12)
    with torch.no_grad():
        positions = torch.arange(2, 14).unsqueeze(0)
        expected = model(text.unsqueeze(0), position_ids=positions, use_cache=False).logits[0]
    decoder = ModuleDecoder(model, ROOM, static)
    assert_same(read_all(decoder, text), expected)
    steps = [read_last(decoder, text[:stop], 0 if stop == 5 else stop - 1).clone() for stop in range(5, 13)]
    assert_same(torch.stack(steps), expected[4:])


def test_the_first_position():
    assert first_position(random_model("roberta", _ROBERTA)) == 2
    assert first_position(random_model(*KINDS["learned positions"])) == 0


def test_what_lies_before_the_first_position_is_no_context():
    for kind, positions in ((("roberta", _ROBERTA), 64 - 2), (KINDS["keys and values"], 256)):
        runner = ModuleRunner(random_model(*kind), None, False, quantized=False)
        model = Model(About("m", "torch", "bf16", 0), runner, None, print)
        assert model.max_positions == positions


_BERT = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
_GEMMA = dict(_SIZES, head_dim=16, query_pre_attn_scalar=16, use_bidirectional_attention=True)


@pytest.mark.parametrize(("model_type", "config"), [("bert", _BERT), ("roberta", _BERT), ("gemma3_text", _GEMMA)])
def test_models_that_look_at_later_tokens_are_refused(model_type, config):
    with pytest.raises(ModelError) as error:
        check_causal(random_model(model_type, config))
    assert str(error.value) == (
        f"{model_type} models look at later tokens too, so that they write no text from left to right, and are not run "
        f"here"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["keys and values", "deltas among experts", "latent keys", "states and keys"])
def test_models_that_do_not_are_not(kind, dtype):
    check_causal(random_model(*KINDS[kind]).to(dtype))
    check_causal(random_model("bert", dict(_BERT, is_decoder=True)).to(dtype))


def test_one_row_a_call_is_not_enough():
    xlnet = random_model("xlnet", dict(vocab_size=VOCAB, d_model=64, n_layer=1, n_head=4, d_inner=128))
    with pytest.raises(ModelError, match="^XLNetLMHeadModel predicts one token a call only, and is not run here$"):
        check_causal(xlnet)


def test_a_row_of_its_own_behind_the_text_is_not_one_of_the_text():
    """XLM puts a mask there, and its last row is what it predicts."""
    model = random_model("xlm", dict(vocab_size=VOCAB, emb_dim=64, n_layers=1, n_heads=4, causal=True, mask_token_id=5))
    with pytest.raises(ModelError, match="^XLMWithLMHeadModel predicts one token a call only, and is not run here$"):
        check_causal(model)


def test_a_model_that_does_not_run():
    model = random_model(*KINDS["keys and values"]).bfloat16()
    model.model.layers[1].mlp.up_proj.float()
    with pytest.raises(ModelError, match=r"^LlamaForCausalLM does not run in bfloat16 \(expected .*Float.*\)$"):
        check_causal(model)


def test_a_model_that_nobody_taught_to_generate():
    model = random_model(*KINDS["keys and values"])
    model.can_generate = lambda: False
    with pytest.raises(ModelError, match="^LlamaForCausalLM has no way of generating, which transformers' own models"):
        ModuleDecoder(model, ROOM, static_cache=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite(value):
    model = random_model(*KINDS["keys and values"])
    decoder = ModuleDecoder(model, ROOM, static_cache=False)
    with torch.no_grad():
        model.lm_head.weight[7, 0] = value
    with pytest.raises(ModelError, match="^the model's logits are not finite: its weights are damaged, or too large"):
        read_last(decoder, text_of(1, PROMPT))


def test_texts_that_there_is_no_room_for():
    decoder = ModuleDecoder(random_model(*KINDS["keys and values"]), 16, static_cache=False)
    for tokens, known, rows, message in (
        (text_of(1, 17), 0, None, "17 tokens: the decoder reads 1 to 16"),
        (text_of(1, 0), 0, None, "0 tokens: the decoder reads 1 to 16"),
        (text_of(1, 5), 3, None, "3 tokens are said to be known, of 5 and of 0 read before"),
        (text_of(1, 5), -1, None, "-1 tokens are said to be known, of 5 and of 0 read before"),
        (text_of(1, 5), 0, 6, "6 rows are asked for, of 5 tokens to be read"),
        (text_of(1, 5), 0, 0, "0 rows are asked for, of 5 tokens to be read"),
        (torch.tensor([3, VOCAB]), 0, None, rf"token ids have to be in \[0, {VOCAB}\)"),
        (torch.tensor([3, -1]), 0, None, rf"token ids have to be in \[0, {VOCAB}\)"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            next(decoder.read(ids(tokens), known, rows))
