"""Linears that other programs have packed, read onto the grid that runs here: their codes, zero points and scales."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.formats.readers import open_layout
from checkpoints.formats.stored import Rounding
from qlinear.errors import CheckpointError
from tests.checkpoints.test_compressed_tensors import model_with, stored

DATA = Path(__file__).parent / "data"
N, K, GROUP = 32, 128, 64

AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
V1 = GPTQ | {"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
V2 = GPTQ | {"checkpoint_format": "gptq_v2"}

PACKED = [
    ("autoawq_gemm", AWQ),
    ("autoawq_gemv", AWQ | {"version": "GEMV"}),
    ("autoawq_gemv_fast", AWQ | {"version": "gemv_fast"}),
    ("gptqmodel_v2_4bit", V2),
    ("gptqmodel_v2_3bit", V2 | {"bits": 3}),
    ("gptqmodel_v1_4bit", V1),
]


def read(tensors: dict, section: dict, folder: Path, bias: bool = False):
    """The linear as it would run, and the reader's layout."""
    source = stored(tensors, folder / "m.safetensors")
    layout = open_layout(section, folder)
    found = layout.check(model_with(K, bias, N), "part.linear", source.shapes)
    with ExitStack() as lent:
        linear = layout.read("part.linear", found, source, lent)
        return linear.weight.unpack(), linear.bias, layout


def packed(name: str) -> tuple[dict, torch.Tensor, torch.Tensor]:
    tensors = load_file(DATA / f"{name}.safetensors")
    return tensors, tensors.pop("expected.codes"), tensors.pop("expected.zeros")


@pytest.mark.parametrize(("name", "section"), PACKED)
def test_codes_zero_points_and_scales_are_those_that_were_packed(tmp_path, name, section):
    tensors, codes, zeros = packed(name)
    made, bias, layout = read(tensors, section, tmp_path, "bias" in tensors)
    assert torch.equal(made.codes, codes) and torch.equal(made.zeros, zeros)
    scales = (tensors["scales"] if name == "autoawq_gemv" else tensors["scales"].t())[:, : K // GROUP]
    assert made.scales.dtype == torch.bfloat16 and torch.equal(made.scales, scales.to(torch.bfloat16))
    assert bias is None or torch.equal(bias, tensors["bias"])
    (note,) = layout.notes()
    change = (made.scales.double() / scales.double() - 1).abs()
    assert note == (
        f"the scales are rounded to the bfloat16 that the kernels hold: by {change.mean():.2%} on average, "
        f"{change.max():.2%} at most"
    )
    assert 0.0005 < change.mean() < 0.0015 and change.max() < 2**-8


def test_a_zero_point_of_zero_in_the_first_version(tmp_path):
    """The file has some. Who wrote it by whole words is believed; of others it is not known what they meant."""
    tensors, _, zeros = packed("gptqmodel_v1_4bit")
    assert (zeros == 0).any()
    with pytest.raises(CheckpointError, match=r"qzeros holds 15, which .* zero points of 0 or of 16; ask .* gptq_v2$"):
        read(tensors, GPTQ, tmp_path)


def test_zero_points_that_are_stored_as_products(tmp_path):
    """Whole numbers times scales, within what float16 rounds; what is none of that is damage."""
    tensors, _, _ = packed("autoawq_gemv_fast")
    section = AWQ | {"version": "gemv_fast"}
    tensors["qzeros"][1, 3] -= tensors["scales"][1, 3] / 4
    with pytest.raises(CheckpointError, match="qzeros holds what are no scales times whole numbers of 0 to 15"):
        read(tensors, section, tmp_path)
    tensors["qzeros"][1, 3] = -16 * tensors["scales"][1, 3]
    with pytest.raises(CheckpointError, match="whole numbers of 0 to 15; it is damaged"):
        read(tensors, section, tmp_path)
    tensors, _, _ = packed("autoawq_gemv_fast")
    with pytest.raises(CheckpointError, match="qweight: packed weights have to be int16, not torch.int32"):
        read(tensors | {"qweight": tensors["qweight"].int()}, section, tmp_path)


@pytest.mark.parametrize(("name", "version"), [("autoawq_gemm", "gemm"), ("autoawq_gemv", "gemv")])
def test_awq_of_a_symmetric_grid(tmp_path, name, version):
    """As GPTQModel writes awq unless it is told otherwise: no zero points by the config, and 8 for each in the file."""
    tensors, codes, _ = packed(name)
    section = AWQ | {"zero_point": False, "version": version}
    tensors["qzeros"] = torch.full_like(tensors["qzeros"], 0x88888888 - 2**32)
    made, _, _ = read(tensors, section, tmp_path, "bias" in tensors)
    scales = (tensors["scales"] if version == "gemv" else tensors["scales"].t())[:, : K // GROUP].to(torch.bfloat16)
    expected = (codes.double() - 8) * scales.double().repeat_interleave(GROUP, 1)
    assert torch.equal(made.codes, codes) and torch.equal(made.dequantize().double(), expected)
    tensors["qzeros"][1, 0] -= 1
    with pytest.raises(CheckpointError, match=r"qzeros holds zero points other than 8, where the config says .* none"):
        read(tensors, section, tmp_path, "bias" in tensors)


def test_zero_points_of_the_first_version_are_one_more(tmp_path):
    """As AutoGPTQ has written symmetric weights: 7 in every field. Nothing said is the first version."""
    tensors, _, _ = packed("gptqmodel_v2_4bit")
    tensors["qzeros"] = torch.full_like(tensors["qzeros"], 0x77777777)
    made, _, _ = read(tensors, GPTQ | {"sym": True}, tmp_path)
    assert (made.zeros == 8).all()
    made, _, _ = read(tensors, V2, tmp_path)
    assert (made.zeros == 7).all()


def test_inputs_in_shuffled_groups_are_refused(tmp_path):
    tensors, _, _ = packed("gptqmodel_desc_act")
    with pytest.raises(CheckpointError, match=r"g_idx puts inputs that are no neighbours into one group \(desc_act\)"):
        read(tensors, V2 | {"desc_act": True}, tmp_path)


def test_inputs_that_are_said_to_be_sorted_and_are_not(tmp_path):
    """desc_act with the groups in their order, as static groups leave them: the same weight."""
    tensors, codes, _ = packed("gptqmodel_v2_4bit")
    made, _, _ = read(tensors, V2 | {"desc_act": True}, tmp_path)
    assert torch.equal(made.codes, codes)
    del tensors["g_idx"]
    made, _, _ = read(tensors, V2, tmp_path)
    assert torch.equal(made.codes, codes)
    with pytest.raises(CheckpointError, match=r"g_idx is None on disk, \(128,\) by the config"):
        read(tensors, V2 | {"desc_act": True}, tmp_path)  # which says that their order is to be known


@pytest.mark.parametrize(("name", "section"), [PACKED[0], ("gptqmodel_v2_4bit", V2)])
def test_groups_that_the_kernels_lack_run_with_scales_repeated(tmp_path, name, section):
    """Whole rows: one stored group of 128 is what a group size of -1 says."""
    tensors, codes, _ = packed(name)
    tensors.pop("g_idx", None)
    for part in ("scales", "qzeros"):
        tensors[part] = tensors[part][:1].contiguous()
    made, _, _ = read(tensors, section | {"group_size": -1}, tmp_path, "bias" in tensors)
    assert made.group_size == 128 and torch.equal(made.codes, codes)
    wide = {part: torch.cat([tensors[part]] * 3) for part in ("qweight",)} | {
        part: tensors[part] for part in ("scales", "qzeros")
    }
    source = stored(wide, tmp_path / "wide.safetensors")
    layout = open_layout(section | {"group_size": 3 * K}, tmp_path)
    found = layout.check(model_with(3 * K, False, N), "part.linear", source.shapes)
    with ExitStack() as lent:
        made = layout.read("part.linear", found, source, lent).weight.unpack()
    assert found.group_size == 384 and made.group_size == 128 and torch.equal(made.codes[:, K : 2 * K], codes)
    assert torch.equal(made.scales[:, 0], made.scales[:, 2]) and torch.equal(made.zeros[:, 0], made.zeros[:, 1])


def test_a_bias_of_zeros_where_the_model_has_none_is_dropped(tmp_path):
    tensors, _, _ = packed("gptqmodel_v2_4bit")
    tensors["bias"] = torch.zeros(N, dtype=torch.float16)
    assert read(tensors, V2, tmp_path)[1] is None
    tensors["bias"][3] = 1
    with pytest.raises(CheckpointError, match="bias is stored, but the model of the config has none there"):
        read(tensors, V2, tmp_path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (AWQ | {"bits": 3}, "says 3 bits of awq; the format has 4"),
        (AWQ | {"bits": 4.0}, "says 4.0 bits"),
        (AWQ | {"group_size": 0}, "says group size 0"),
        (AWQ | {"group_size": "64"}, "says group size '64'"),
        (AWQ | {"group_size": 10**12}, r"is 32x128: out_features have to come in eights, in_features in 10+s"),
        (AWQ | {"group_size": 48}, "is in groups of 48; what runs here are multiples of 32"),
        (AWQ | {"group_size": 32}, r"qzeros is \(2, 4\) on disk, \(4, 4\) by the config \(awq gemm, group size 32\)"),
        (AWQ | {"version": "marlin"}, "says version 'marlin' of awq; what is read here are gemm, gemv, gemv_fast"),
        (AWQ | {"version": 3}, "says version 3 of awq"),
        (AWQ | {"version": "gemv"}, r"qweight is \(128, 4\) on disk, \(32, 16\) by"),
        (AWQ | {"zero_point": 0}, "says zero_point 0; it has to be true or false"),
        (GPTQ | {"bits": 8}, r"says 8 bits of gptq; this program runs \(3, 4\)"),
        (GPTQ | {"checkpoint_format": "marlin"}, "says checkpoint_format 'marlin'; what is read here are gptq"),
        (GPTQ | {"pack_dtype": "int64"}, "packs into 'int64'"),
        (GPTQ, r"qweight is \(128, 4\) on disk, \(16, 32\) by the config \(gptq, 4 bits, group size 64\)"),
        (GPTQ | {"quant_method": "fp8"}, "says quant_method 'fp8'; what is read here are compressed-tensors, awq"),
        (GPTQ | {"quant_method": ["awq"]}, r"says quant_method \"\['awq'\]\""),
    ],
)
def test_what_is_said_of_the_weights_and_cannot_be(tmp_path, section, message):
    tensors, _, _ = packed("autoawq_gemm")
    with pytest.raises(CheckpointError, match=message) as error:
        read(tensors, section, tmp_path, bias=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(qweight=None), "holds no quantized|qweight is None"),
        (dict(qzeros=None), r"qzeros is None on disk, \(2, 4\)"),
        (dict(scales=None), r"scales is None on disk, \(2, 32\)"),
        (dict(scales=torch.ones(2, 32, dtype=torch.int32)), "scales is stored as torch.int32, not as floats"),
        (dict(scales=torch.full((2, 32), torch.nan).half()), "scales holds a value that is not finite"),
        (dict(qweight=torch.ones(128, 4)), "have to be int32, not torch.float32"),
        (dict(qzeros=torch.ones(2, 4, dtype=torch.int64)), "have to be int32, not torch.int64"),
        (dict(bias=torch.ones(16).half()), r"bias is \(16,\) on disk, \(32,\)"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    tensors, _, _ = packed("autoawq_gemm")
    tensors = {part: tensor for part, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        read(tensors, AWQ, tmp_path, bias=True)


def test_rounding_is_counted_over_all_scales():
    rounding = Rounding()
    exact = torch.tensor([1.0, 0.0, 1 + 2**-8], dtype=torch.float32)
    assert torch.equal(rounding("s", exact), torch.tensor([1.0, 0.0, 1.0], dtype=torch.bfloat16))
    rounding("s", torch.ones(6))
    change = 2**-8 / (1 + 2**-8)
    assert rounding.count == 8 and rounding.largest == pytest.approx(change)
    assert rounding.mean == pytest.approx(change / 8)
    assert rounding.rms == pytest.approx(2**-8 / (7 + (1 + 2**-8) ** 2) ** 0.5)
    assert Rounding(None)("s", exact) is exact
    with pytest.raises(CheckpointError, match="^s holds 7e[+]04, more than the 6.55e[+]04 of torch.float16"):
        Rounding(torch.float16)("s", torch.tensor([7e4]))
