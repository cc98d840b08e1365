"""The model card, README.md: what a checkpoint was made of and how, what that lost, and what opens it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from qlinear.errors import one_line

SIZE = "bits a weight, embeddings included"

# Instead of a number of bits, where layers differ in it; its readers have a row of their own.
MIXED = "mixed"

# Who opens which format, as docs/interop.md shows it: (program, how).
READERS = {
    "compressed-tensors": (
        ("run_awq", 'load("{directory}")'),
        ("transformers with compressed-tensors", 'AutoModelForCausalLM.from_pretrained("{directory}")'),
        ("vLLM (4 bits)", "vllm serve {directory}"),
    ),
    MIXED: (
        ("run_awq", 'load("{directory}")'),
        (
            "transformers (symmetric only)",
            'AutoModelForCausalLM.from_pretrained("{directory}")',
        ),
    ),
    "awq": (
        ("run_awq", 'load("{directory}")'),
        ("mlx-lm", 'mlx_lm.load("{directory}")'),
        ("GPTQModel", 'GPTQModel.load("{directory}")'),
        ("onnxruntime-genai", "python -m onnxruntime_genai.models.builder -i {directory} -e cpu -p int4 -o MADE"),
        ("vLLM", "vllm serve {directory}"),
    ),
    "gptq": (
        ("run_awq", 'load("{directory}")'),
        ("GPTQModel", 'GPTQModel.load("{directory}")'),
        ("vLLM (symmetric only)", "vllm serve {directory}"),
    ),
}


@dataclass(frozen=True)
class Origin:
    """Of the float model. name: as it was given; licence: as its own card has it; licence_name, licence_link: of one
    that is none of the known."""

    name: str | None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None

    @property
    def hub_id(self) -> str | None:
        """None for what is no repository's name: a path of this machine is nobody's business."""
        named = self.name and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.name) and not os.path.exists(self.name)
        return self.name if named else None


def read_origin(name: str | None, directory: Path | None) -> Origin:
    """What the card beside a model says of its licence; nothing where there is none, or one that cannot be read."""
    from huggingface_hub import ModelCard

    card = directory / "README.md" if directory else None
    if card is None or not card.is_file():
        return Origin(name)
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # whatever stands there
        return Origin(name)
    base = data.get("base_model") if "quantized" in str(data.get("base_model_relation")) else None
    texts = [data.get(key) if isinstance(data.get(key), str) else None for key in
             ("license", "license_name", "license_link")]  # fmt: skip
    return Origin(base if isinstance(base, str) else name, *texts)


def card_text(origin: Origin, format: str, label: str, facts: dict[str, Any], losses: list[str]) -> str:
    """The whole file. label: what the checkpoint is called; facts: of the recipe, by name; losses: sentences."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=origin.hub_id, base_model_relation="quantized" if origin.hub_id else None,
        license=origin.licence, license_name=origin.licence_name, license_link=origin.licence_link,
        library_name="transformers", pipeline_tag="text-generation",
        tags=[format, "awq", f"{facts.get('bits')}-bit"],
    )  # fmt: skip
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    known = READERS[MIXED if facts.get("bits") == MIXED else format]
    if "embedding" in facts:  # the others take it for another matrix, or say that it is missing
        known = known[:1]
    readers = "\n".join(f"| {who} | `{how.format(directory=label)}` |" for who, how in known)
    lost = "\n".join(f"- {sentence}" for sentence in losses) or "- nothing was measured"
    shown = origin.hub_id or (Path(origin.name).name if origin.name else "a model that its recipe does not name")
    body = f"""# {label}

{shown}, quantized with run_awq, in the {format} format.

## How it was made

| | |
|---|---|
{rows}

`awq_recipe.json` has the rest: versions, seed, the calibration text's hash, every layer's loss.

## What it lost

{lost}

## What opens it

| program | how |
|---|---|
{readers}
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def facts_of(recipe: dict) -> dict[str, Any]:
    """What a card tells of a recipe as `awq_recipe.json` has it; what is not known is left out."""
    calibration = recipe.get("calibration") if isinstance(recipe.get("calibration"), dict) else {}
    asked = recipe.get("options") if isinstance(recipe.get("options"), dict) else {}
    head_size = asked.get("lm_head_group_size") or recipe.get("group_size")
    mixed = recipe.get("bits_per_weight")
    told = {
        "bits": MIXED if isinstance(mixed, float) else recipe.get("w_bit"),
        "bits a weight asked for": mixed,
        "group size": recipe.get("group_size"),
        "symmetric": recipe.get("symmetric"),
        "scales": recipe.get("awq"),
        "solver": recipe.get("solver"),
        "distillation": f"of the scales, {asked['distill']} steps" if asked.get("distill") else None,
        "output head": f"quantized{f' in groups of {head_size}' * bool(head_size)}" if recipe.get("lm_head") else None,
        "embedding": "8 bits" if asked.get("embedding_bits") == 8 else None,
        "calibration text": calibration.get("source") and Path(str(calibration["source"])).name,
        "samples": calibration.get("n_samples"),
        "tokens a sample": calibration.get("seqlen"),
        SIZE: _bits_of(recipe),
    }
    return {name: one_line(ValueError(value)) for name, value in told.items() if value is not None}


def losses_of(recipe: dict) -> list[str]:
    """What the layers' losses come to, in sentences."""
    layers = recipe.get("layers") if isinstance(recipe.get("layers"), list) else []
    lost = [layer.get("loss_solver") or layer.get("loss_awq") for layer in layers if isinstance(layer, dict)]
    known = [value for value in lost if isinstance(value, float) and value > 0]
    sentences = []
    if known:
        sentences.append(
            f"squared error of a linear's output, relative to the output: {geometric_mean(known):.2e} "
            f"(geometric mean of {len(known)} linears), {max(known):.2e} at most"
        )
    if isinstance(recipe.get("distilled"), dict):
        before, after = (recipe["distilled"].get(when) for when in ("before", "after"))
        sentences.append(
            f"divergence of its predictions from the float model's on text held back, in nats a token: {before:.4f}, "
            f"after distillation {after:.4f}"
        )
    return sentences


def _bits_of(recipe: dict) -> str | None:
    size = recipe.get("size") if isinstance(recipe.get("size"), dict) else {}
    bits = size.get("bits_per_weight_with_embeddings")
    return f"{bits:.2f}" if isinstance(bits, float) else None
