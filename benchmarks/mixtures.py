"""What AWQ costs a mixture of experts with real weights, whose float answer is that of a dense model.

    python -m benchmarks.mixtures --dataset wikitext.txt --calib_data c4.txt --docs

makes two Mixtrals of the embedded model: one whose MLPs are cut into four experts, of which a token reaches all, and
one with two copies of each MLP, of which a router chooses one. In exact arithmetic both are the dense model. All three
are quantized alike, and the table goes into docs/experts.md.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from benchmarks.docs import DOCS, between
from benchmarks.table import Table
from checkpoints.pretrained import open_pretrained
from engine.scoring import cut_windows, perplexity
from qlinear.progress import Step
from run_awq import Recipe, load, quantize

NAME = "smollm2-135m-instruct"
PIECES = 4
PAGE = DOCS / "experts.md"
BEGIN, END = "<!-- begin: python -m benchmarks.mixtures --docs -->", "<!-- end -->"
HEADINGS = ["SmolLM2 135M", "float32", "AWQ", "rounded only"]


@dataclass(frozen=True)
class Experts:
    """How a dense MLP becomes experts. pieces: `(gate, up, down)` -> those of each expert, beside one another in a new
    first dimension; chosen: how many a token reaches; routed: whether the router prefers one of them for each token."""

    title: str
    count: int
    chosen: int
    routed: bool
    pieces: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _cut(gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each weighs 1 / PIECES: a router of zeros has no favourites."""
    (ffn, hidden), size = gate.shape, gate.shape[0] // PIECES
    rows = (PIECES, size, hidden)
    columns = down.view(hidden, PIECES, size).transpose(0, 1)
    assert ffn % PIECES == 0
    return gate.view(rows), up.view(rows), PIECES * columns


def _copied(gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.stack([gate] * 2), torch.stack([up] * 2), torch.stack([down] * 2)


CUT = Experts("its MLPs cut into 4 experts, all reached", PIECES, PIECES, False, _cut)
COPIED = Experts("2 copies of its MLPs, one reached", 2, 1, True, _copied)


def dense(layers: int | None = None) -> nn.Module:
    """The embedded Llama in bfloat16, or its first layers."""
    source = open_pretrained(NAME)
    if layers is not None:
        del source.model.model.layers[layers:]
        source.model.config.num_hidden_layers = layers
        source.model.config.layer_types = None
    return source.load(torch.bfloat16)


@torch.no_grad()
def mixture(model: nn.Module, experts: Experts, seed: int = 0) -> nn.Module:
    """A Mixtral, in bfloat16, that computes what a Llama does."""
    from transformers import AutoConfig, AutoModelForCausalLM

    given = model.config.to_dict()
    same = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act rms_norm_eps "
        "max_position_embeddings rope_parameters tie_word_embeddings bos_token_id eos_token_id pad_token_id"
    ).split()
    config = AutoConfig.for_model(
        "mixtral", intermediate_size=given["intermediate_size"] // (1 if experts.routed else experts.count),
        num_local_experts=experts.count, num_experts_per_tok=experts.chosen, sliding_window=None, head_dim=None,
        **{name: given[name] for name in same},
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    missing, _ = made.load_state_dict(model.state_dict(), strict=False)
    assert all(".mlp." in name for name in missing), missing
    generator = torch.Generator().manual_seed(seed)
    for layer, of in zip(made.model.layers, model.model.layers, strict=True):
        parts = (of.mlp.gate_proj.weight, of.mlp.up_proj.weight, of.mlp.down_proj.weight)
        gate, up, down = experts.pieces(*parts)
        layer.mlp.experts.gate_up_proj.copy_(torch.cat((gate, up), dim=1))
        layer.mlp.experts.down_proj.copy_(down)
        router = layer.mlp.gate.weight
        router.copy_(torch.randn(router.shape, generator=generator) if experts.routed else torch.zeros(router.shape))
    return made


def saved(model: nn.Module, directory: Path) -> Path:
    model.save_pretrained(directory)
    open_pretrained(NAME).tokenizer.save_pretrained(directory)
    return directory


@torch.no_grad()
def exact_perplexity(directory: Path, windows: Tensor) -> float:
    """Of token windows `(n, window)`, by transformers, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    total = 0.0
    for window in windows:
        logits = model(window[None], use_cache=False).logits[0, :-1].double()
        total += nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return perplexity(total, windows)


@dataclass(frozen=True)
class Scored:
    """Perplexities of one model: in float32, quantized with AWQ, and rounded to nearest."""

    exact: float
    awq: float
    rounded: float


def score(source: Path, recipe: dict, text: str, window: int, n_windows: int | None) -> Scored:
    """recipe: fields of both ways of quantizing."""
    tokens = open_pretrained(str(source)).tokenizer(text, verbose=False)["input_ids"]
    windows = cut_windows(torch.tensor(tokens), window, n_windows, "the text")
    found = {}
    for awq in ("run", "none"):
        output, how = source.with_name(f"{source.name}-{awq}"), {"scales": str(source.with_suffix(f".{awq}.pt"))}
        wanted = Recipe(awq=awq, **recipe, **(how if awq == "run" else {}))
        quantize(str(source), str(output), wanted, progress=_tell)
        found[awq] = load(output).perplexity(text, window, n_windows)
    return Scored(exact_perplexity(source, windows), found["run"], found["none"])


def _tell(event: object) -> None:
    if isinstance(event, Step) and event.done == event.total:
        click.echo(f"{event.what}: {event.done}")


def markdown(scored: dict[str, Scored]) -> str:
    first = next(iter(scored.values()))

    def cell(value: float, of: float) -> str:
        return f"{value:.3f} ({value / of - 1:+.2%})"

    rows = [
        [title, f"{each.exact:.4f}", cell(each.awq, first.exact), cell(each.rounded, first.exact)]
        for title, each in scored.items()
    ]
    return Table("", HEADINGS, rows).markdown()


@click.command(help=__doc__)
@click.option("--dataset", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--calib_data", default=Recipe.calib_data, show_default=True)
@click.option("--n_samples", default=Recipe.n_samples, show_default=True)
@click.option("--w_bit", default=Recipe.w_bit, show_default=True)
@click.option("--window", default=512, show_default=True)
@click.option("--n_windows", default=40, show_default=True)
@click.option("--layers", type=click.IntRange(1), help="Only the first ones.  [default: all]")
@click.option("--docs", is_flag=True, help="Write docs/experts.md.")
def main(dataset: Path, window: int, n_windows: int, layers: int | None, docs: bool, **given) -> None:
    model, text = dense(layers), dataset.read_text(encoding="utf-8")
    recipe = {**given, "group_size": 64}
    made = {"as it is, dense": model} | {kind.title: mixture(model, kind) for kind in (CUT, COPIED)}
    scored = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (title, one) in enumerate(made.items()):
            scored[title] = score(saved(one, Path(folder) / f"m{index}"), recipe, text, window, n_windows)
            click.echo(f"{title}: {scored[title]}")
    said = (
        f"Perplexity on the first {n_windows} windows of {window} tokens of `{dataset.name}`, {given['w_bit']} bits in "
        f"groups of 64, calibrated on {given['n_samples']} samples of `{Path(given['calib_data']).name}`; in brackets "
        f"what that is more than the dense model's in float32."
    )
    table = f"{markdown(scored)}\n\n{said}"
    click.echo(table)
    if docs:
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, table), encoding="utf-8")


if __name__ == "__main__":
    main()
