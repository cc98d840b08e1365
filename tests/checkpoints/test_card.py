"""README.md: what the hub reads of it, and what a person does."""

import pytest
from huggingface_hub import ModelCard

from checkpoints.card import Origin, card_text, facts_of, losses_of, read_origin
from checkpoints.export import export
from tests.quantized import quantized, save_float

RECIPE = {
    "w_bit": 4, "group_size": 64, "symmetric": False, "awq": "run", "solver": "gptq", "lm_head": True,
    "options": {"lm_head_group_size": 32, "model_name": "org/model"},
    "calibration": {"source": "/home/somebody/text.txt", "n_samples": 8, "seqlen": 16},
    "layers": [{"loss_solver": 0.01}, {"loss_solver": 0.0001}, {"loss_solver": None}],
    "size": {"bits_per_weight_with_embeddings": 6.775},
}  # fmt: skip


def test_what_the_hub_reads(tmp_path):
    origin = Origin("org/model", "other", "llama2", "LICENSE")
    path = tmp_path / "README.md"
    path.write_text(card_text(origin, "awq", "model-w4", facts_of(RECIPE), losses_of(RECIPE)))
    data = ModelCard.load(path).data.to_dict()
    assert data["base_model"] == "org/model" and data["base_model_relation"] == "quantized"
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "llama2", "LICENSE")
    assert data["tags"] == ["awq", "awq", "4-bit"] or data["tags"] == ["awq", "4-bit"]
    text = path.read_text()
    assert "| bits a weight, embeddings included | 6.78 |" in text and "| calibration text | text.txt |" in text
    assert "1.00e-03 (geometric mean of 2 linears), 1.00e-02 at most" in text and "somebody" not in text
    assert '| mlx-lm | `mlx_lm.load("model-w4")` |' in text


def test_a_path_of_this_machine_is_nobodys_business():
    text = card_text(Origin("/home/somebody/llama"), "gptq", "made", {}, [])
    assert "somebody" not in text and "base_model" not in text and "llama, quantized with run_awq" in text


@pytest.mark.parametrize(
    "recipe", [{}, {"layers": 7, "size": [], "calibration": "x", "options": None}, {"w_bit": "a\nb"}]
)
def test_a_recipe_that_says_nothing(recipe):
    text = card_text(Origin(None), "gptq", "made", facts_of(recipe), losses_of(recipe))
    assert "nothing was measured" in text and "a\nb" not in text


def test_the_licence_goes_along(tmp_path):
    """From the float model's card into the checkpoint's, and from there into the export's."""
    source = save_float(tmp_path / "float")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    made = quantized(source, tmp_path / "w4")
    export(made, tmp_path / "awq", "awq")
    for folder in ("w4", "awq"):
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert card.data.license == "apache-2.0" and f"# {folder}\n" in card.text
    assert "scales stored as float16: changed by" in card.text


@pytest.mark.parametrize("content", ["", "no metadata", "---\nlicense: [1\n---\n", "---\nlicense: 7\n---\n", "\x00"])
def test_a_card_that_cannot_be_read(tmp_path, content):
    (tmp_path / "README.md").write_text(content)
    assert read_origin("name", tmp_path) == Origin("name")
