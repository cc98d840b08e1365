"""Scales files: what is written comes back, and what is foreign, damaged or malicious changes and runs nothing."""

import pickle
from pathlib import Path

import pytest
import torch

from qlinear.errors import ScalesError
from scales import fold, zoo
from scales.mappings import architecture_of, block_linears
from scales.zoo import ScaleFile
from tests.tiny import tiny_model

GROUP = 32


def blocks_of(model) -> dict[str, torch.nn.Module]:
    name = architecture_of(model.config).blocks
    return {f"{name}.{index}": block for index, block in enumerate(model.get_submodule(name))}


def file_for(model, group_size: int = GROUP) -> ScaleFile:
    """A file that scales every edge and clips every linear that may be clipped, as llm-awq would write it."""
    architecture, file = architecture_of(model.config), ScaleFile()
    for unit, block in blocks_of(model).items():
        for edge in architecture.edges:
            vector = torch.rand(fold.scale_length(block, edge, model.config)) + 0.5
            file.scales.append((f"{unit}.{edge.prev}", tuple(f"{unit}.{name}" for name in edge.layers), vector))
        for name, linear in block_linears(block).items():
            if name not in architecture.unclipped:
                clips = torch.rand(linear.out_features, linear.in_features // group_size, 1)
                file.clips.append((f"{unit}.{name}", clips))
    return file


def sort(file: ScaleFile, model, group_size: int = GROUP):
    linears = block_linears(model)
    block = next(iter(blocks_of(model).values()))
    return zoo.by_block(
        file,
        architecture_of(model.config),
        list(blocks_of(model)),
        lambda name: (linears[name].out_features, linears[name].in_features),
        lambda edge: fold.scale_length(block, edge, model.config),
        group_size,
    )


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def assert_one_line(error) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def assert_same(found: ScaleFile, expected: ScaleFile) -> None:
    assert found.meta == expected.meta
    assert [entry[:2] for entry in found.scales] == [entry[:2] for entry in expected.scales]
    assert [name for name, _ in found.clips] == [name for name, _ in expected.clips]
    tensors = [[entry[-1] for entry in file.scales + file.clips] for file in (found, expected)]
    assert all(torch.equal(got, wanted) for got, wanted in zip(*tensors, strict=True))


def test_what_is_written_comes_back(tmp_path, llama):
    file = file_for(llama)
    file.meta = {"w_bit": 4, "group_size": GROUP, "fingerprint": "ab", "calibration": {"source": "builtin", "seed": 42}}
    path = tmp_path / "new" / "folder" / "m-w4-g32.pt"
    zoo.write(path, file)
    assert_same(zoo.read(path), file)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_of_the_zoo_has_lists_and_no_meta(tmp_path, llama):
    file = file_for(llama)
    scales = [(prev, list(layers), vector.half()) for prev, layers, vector in file.scales]
    torch.save({"scale": scales, "clip": file.clips}, tmp_path / "zoo.pt")
    found = zoo.read(tmp_path / "zoo.pt")
    assert found.meta == {} and [entry[:2] for entry in found.scales] == [entry[:2] for entry in file.scales]
    assert all(vector.dtype == torch.float32 for block in sort(found, llama) for _, vector in block.scales)


def test_entries_are_sorted_by_block_whatever_their_order(llama):
    file = file_for(llama)
    sorted_ = sort(ScaleFile(file.scales[::-1], file.clips[::-1]), llama)
    for (unit, _), block in zip(blocks_of(llama).items(), sorted_, strict=True):
        found = {(f"{unit}.{edge.prev}", tuple(f"{unit}.{n}" for n in edge.layers)): v for edge, v in block.scales}
        expected = {(prev, layers): v for prev, layers, v in file.scales if prev.startswith(unit)}
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
        clips = {name: limits for name, limits in file.clips if name.startswith(unit)}
        assert {f"{unit}.{name}" for name in block.clips} == clips.keys()
        assert all(torch.equal(limits, clips[f"{unit}.{name}"]) for name, limits in block.clips.items())


def test_block_ten_is_not_block_one():
    model = tiny_model("llama", num_hidden_layers=11)
    file = file_for(model)
    for index, block in enumerate(sort(file, model)):
        own = [vector for prev, _, vector in file.scales if prev.split(".")[2] == str(index)]
        assert len(own) == 4
        assert all(torch.equal(found, vector) for (_, found), vector in zip(block.scales, own, strict=True))


class Attack:
    """Unpickled by anything laxer than torch's restricted reader, this makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("place", ["whole file", "beside the tensors", "torch format"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, place):
    marker, path = tmp_path / "executed", tmp_path / "evil.pt"
    if place == "torch format":
        torch.save({"scale": [], "clip": [], "meta": {"x": Attack(marker)}}, path)
    else:
        attack = Attack(marker)
        path.write_bytes(pickle.dumps(attack if place == "whole file" else {"scale": [attack], "clip": []}))
    with pytest.raises(ScalesError, match="refused") as error:
        zoo.read(path)
    assert_one_line(error)
    assert not marker.exists()
    if place == "whole file":  # the file would have done it
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle at all", bytes(100)])
def test_a_file_that_is_no_torch_file(tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(ScalesError, match="bad.pt") as error:
        zoo.read(path)
    assert_one_line(error)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path, part, llama):
    path = tmp_path / "torn.pt"
    zoo.write(path, file_for(llama))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ScalesError, match="torn.pt") as error:
        zoo.read(path)
    assert_one_line(error)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ScalesError, match=r"no scales file .*absent.pt; make one with --awq run"):
        zoo.read(tmp_path / "absent.pt")


ONES = torch.ones(4)


@pytest.mark.parametrize(
    "content",
    [
        ONES,
        [],
        {},
        {"scale": []},
        {"scale": 1, "clip": []},
        {"scale": [("a", ("b",))], "clip": []},
        {"scale": [("a", 5, ONES)], "clip": []},
        {"scale": [("a", ("b",), [1.0])], "clip": []},
        {"scale": [("a", ("b",), torch.ones(4, dtype=torch.int64))], "clip": []},
        {"scale": [], "clip": ONES},
        {"scale": [], "clip": [("a", None)]},
        {"scale": [], "clip": [], "meta": 7},
        {"scale": [], "clip": [], "meta": {"calibration": "builtin"}},
        {"scale": [], "clip": [], "meta": {"w_bit": ONES}},
        {"weight": ONES},
    ],
    ids=repr,
)
def test_another_structure(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ScalesError, match="other.pt is not an AWQ result file") as error:
        zoo.read(tmp_path / "other.pt")
    assert_one_line(error)


def broken(file: ScaleFile, **changes) -> ScaleFile:
    """The file with the tensor of its first scale or first clip replaced."""
    scales, clips = list(file.scales), list(file.clips)
    if "scale" in changes:
        scales[0] = (*scales[0][:2], changes["scale"](scales[0][2]))
    if "clip" in changes:
        clips[0] = (clips[0][0], changes["clip"](clips[0][1]))
    return ScaleFile(scales, clips)


def first_to(value: float):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scale=first_to(float("nan"))), "input_layernorm that is not a positive finite number"),
        (dict(scale=first_to(float("inf"))), "not a positive finite number"),
        (dict(scale=first_to(0.0)), "not a positive finite number"),
        (dict(scale=first_to(-1.0)), "not a positive finite number"),
        (dict(clip=first_to(float("nan"))), "v_proj that is negative or not finite"),
        (dict(clip=first_to(-0.5)), "v_proj that is negative or not finite"),
        (dict(scale=lambda t: t[:-1]), r"\(63,\) scales for .*input_layernorm, the model needs \(64,\)"),
        (dict(scale=lambda t: t.view(1, -1)), r"\(1, 64\) scales for .*the model needs \(64,\)"),
        (dict(clip=lambda t: t[:-1]), r"clips \(31, 2, 1\) for .*v_proj, the model needs \(32, 2, 1\)"),
        (dict(clip=lambda t: t[:, :0]), "made for another model"),
        (dict(clip=lambda t: t.squeeze(-1)), "made for another model"),
        (dict(clip=lambda t: t[:, :1]), "made for group size 64, not 32"),
    ],
)
def test_bad_values_and_shapes(change, message, llama):
    with pytest.raises(ScalesError, match=message) as error:
        sort(broken(file_for(llama), **change), llama)
    assert_one_line(error)


def test_a_file_for_another_group_size(llama):
    with pytest.raises(ScalesError, match=r"made for group size 32, not 64 \(layer model.layers.0"):
        sort(file_for(llama, group_size=32), llama, group_size=64)


@pytest.mark.parametrize(
    ("made_for", "overrides", "message"),
    [
        ("llama", dict(hidden_size=96), "another model"),
        ("llama", dict(num_hidden_layers=3), r"model.layers.2.input_layernorm, which is in no decoder block"),
        ("llama", dict(num_hidden_layers=1), r"nothing for model.layers.1: .* a model with fewer blocks"),
        ("opt", {}, r"model.decoder.layers.0.self_attn_layer_norm, which is in no decoder block"),
        ("phi3", {}, r"input_layernorm -> model.layers.0.self_attn.qkv_proj, which cannot be folded"),
        ("llama", dict(num_key_value_heads=4), "v_proj.*another model"),
    ],
)
def test_a_file_for_another_model(made_for, overrides, message, llama):
    with pytest.raises(ScalesError, match=message) as error:
        sort(file_for(tiny_model(made_for, **overrides)), llama)
    assert_one_line(error)


def test_a_file_that_says_which_model_it_is_for_may_leave_blocks_out(llama):
    """Blocks that fell back to plain rounding are not in it."""
    file = file_for(llama)
    file.scales, file.clips = file.scales[:4], []
    file.meta = {"fingerprint": "ab"}
    assert [len(block.scales) for block in sort(file, llama)] == [4, 0]


@pytest.mark.parametrize("name", ["model.layers.0.mlp", "model.layers.0.mlp.fc1", "model.layers.1."])
def test_clips_of_what_is_no_linear(name, llama):
    file = ScaleFile([], [(name, torch.ones(4, 2, 1))])
    with pytest.raises(ScalesError, match=f"clips {name}, which this model does not have"):
        sort(file, llama)


@pytest.mark.parametrize("name", ["lm_head", "model.norm", "", "model.layers", "model.layers.0", "model.layers.7.mlp"])
def test_names_outside_the_blocks(name, llama):
    for file in (ScaleFile([], [(name, ONES)]), ScaleFile([(name, ("model.layers.0.mlp.up_proj",), ONES)])):
        with pytest.raises(ScalesError, match="in no decoder block of this model"):
            sort(file, llama)


def test_an_edge_across_two_blocks(llama):
    across = ("model.layers.0.mlp.up_proj", ("model.layers.1.mlp.down_proj",), ONES)
    with pytest.raises(ScalesError, match="in no decoder block"):
        sort(ScaleFile([across]), llama)


def test_an_edge_given_twice_is_not_folded_twice(llama):
    file = file_for(llama)
    with pytest.raises(ScalesError, match="scales model.layers.0.input_layernorm -> .* twice"):
        sort(ScaleFile([*file.scales, file.scales[0]], file.clips), llama)


@pytest.mark.parametrize(("model_type", "activation"), [("bloom", "mlp.gelu_impl"), ("falcon", "mlp.act")])
def test_scaled_activations_of_llm_awq(model_type, activation):
    """llm-awq puts a scaled GELU in front of fc2, for which a checkpoint has no place."""
    file = ScaleFile([(f"transformer.h.0.{activation}", ("transformer.h.0.mlp.dense_4h_to_h",), torch.ones(128))])
    with pytest.raises(ScalesError, match=f"{activation} is no norm or linear .* use --awq run") as error:
        sort(file, tiny_model(model_type))
    assert_one_line(error)


WANTED = {"w_bit": 4, "group_size": 128, "fingerprint": "ab"}


@pytest.mark.parametrize(
    ("name", "meta", "message"),
    [
        ("m-w3-g128.pt", {}, "for bits 3, not 4"),
        ("m-w4-g64.pt", {}, "for group size 64, not 128"),
        ("m.pt", {"w_bit": 3}, "for bits 3, not 4"),
        ("m-w4-g128.pt", {"w_bit": 3}, "for bits 3, not 4"),
        ("m.pt", {"group_size": 32}, "for group size 32, not 128"),
        ("m.pt", {"fingerprint": "cd"}, "for model fingerprint cd, not ab"),
    ],
)
def test_files_made_for_other_options(name, meta, message):
    with pytest.raises(ScalesError, match=f"{name} was made {message}"):
        zoo.check_made_for(Path(name), ScaleFile(meta=meta), WANTED)


@pytest.mark.parametrize("name", ["m.pt", "m-w4-g128.pt", "llama-2-7b-chat-w4-g128-awq.pt"])
@pytest.mark.parametrize("meta", [{}, WANTED, {**WANTED, "note": "anything"}])
def test_files_made_for_these_options(name, meta):
    zoo.check_made_for(Path(name), ScaleFile(meta=meta), WANTED)
