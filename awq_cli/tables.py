"""Results as tables, on a terminal of any width: the layout of everything that a task shows in the end."""

import shlex
import sys
from collections import defaultdict
from collections.abc import Callable
from statistics import geometric_mean
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table

from awq_cli.forecast_tables import served, show_forecast
from awq_cli.layout import amount, name_cell, new_table, number, passes, plain
from checkpoints.formats.names import GGUF_FLOATS
from engine.drafting import Drafted, together


def show(out: Terminal, result: Any) -> None:
    SHOW[result.task](out, result)


def _heading(out: Terminal, result: Any) -> None:
    mode = ", flash attention" if result.flash_attention else ""
    out.print(f"\n{plain(result.checkpoint or result.model)} on [bold]{result.backend}[/bold]{mode}", soft_wrap=True)


def _show_quantize(out: Terminal, result: Any) -> None:
    if any(layer.loss_awq is not None for layer in result.layers):
        out.print(_loss_table(result))
    if result.fallback_blocks:
        out.print(
            f"AWQ was worse than plain rounding in {len(result.fallback_blocks)} blocks, which are rounded plainly: "
            + ", ".join(result.fallback_blocks),
            soft_wrap=True,
        )
    if result.blocks:
        before, after = (
            geometric_mean([max(getattr(errors, when), 1e-30) for errors in result.blocks.values()])
            for when in ("before", "after")
        )
        out.print(f"error of a block's output {before:.2e}, learned {after:.2e} (geometric means)", soft_wrap=True)
    if result.distilled:
        fit = result.distilled
        out.print(
            f"divergence from the float model {fit.before:.4f} nats a token, distilled {fit.after:.4f}",
            soft_wrap=True,
        )
    size, seconds = result.size, result.seconds
    out.print(
        f"\n{result.model}: {amount(size.float_bytes)} in bfloat16 -> {amount(size.quantized_bytes)}, "
        f"{size.bits_per_weight:.2f} bits a weight ({size.bits_per_weight_with_embeddings:.2f} with embeddings)",
        soft_wrap=True,
    )
    if result.bits_per_weight:
        shares = (f"{one.linears} of {one.w_bit} bits in groups of {one.group_size}" for one in result.grids)
        out.print(f"layers: {', '.join(shares)}", soft_wrap=True)
    out.print(
        f"{seconds.total:.1f} s (loading {seconds.load:.1f}, blocks {seconds.search:.1f}, "
        f"of which float forward passes {seconds.forward:.1f}), peak memory {amount(result.peak_rss_bytes)}",
        soft_wrap=True,
    )
    if len(result.shards) > 1:
        out.print(f"vLLM serves it with --tensor-parallel-size {served(result.shards)} (docs/scale.md)", soft_wrap=True)
    if result.scales and result.awq == "run":
        out.print(f"scales saved in {plain(result.scales)}", soft_wrap=True)
    out.print(f"saved in [bold]{plain(result.checkpoint)}[/bold]; to run it:", soft_wrap=True)
    out.print(f"  {_command()} {_next(result)}", markup=False, soft_wrap=True)
    if result.exported:
        made = result.exported
        out.print(f"and as {made.format} in [bold]{plain(made.checkpoint)}[/bold]", soft_wrap=True)


def _command() -> str:
    """How this program was called."""
    called = sys.argv[0]
    return f"python {shlex.quote(called)}" if called.endswith(".py") else called.rpartition("/")[2]


def _next(result: Any) -> str:
    """What is done with a new checkpoint; its own code, where it was let run, is let again."""
    task = "chat" if result.chat_template else "decode"
    trusted = any(given.replace("-", "_") == "__trust_remote_code" for given in sys.argv)
    return f"--task {task} --checkpoint {shlex.quote(result.checkpoint)}" + " --trust_remote_code" * trusted


def _loss_table(result: Any) -> Table:
    """Per kind of layer (the name without its block), as geometric means over the blocks.

    What AWQ alone would lose stands beside what is lost in the checkpoint where a solver has gone on from there.
    """
    kinds = defaultdict(list)
    for layer in result.layers:
        if layer.loss_rtn is not None:
            kinds[".".join(part for part in layer.name.split(".")[2:] if not part.isdigit())].append(layer)
    table = new_table("layer", "loss\nrounded", "with\nAWQ", "as\nsaved", "saved /\nrounded", "AWQ's\nratio")
    for kind, layers in kinds.items():
        rounded, awq, saved = (
            geometric_mean([max(getattr(layer, loss), 1e-30) for layer in layers])
            for loss in ("loss_rtn", "loss_awq", "loss_saved")
        )
        ratios = [layer.ratio for layer in layers if layer.ratio is not None]
        mean = f"{sum(ratios) / len(ratios):.2f}" if ratios else "-"
        table.add_row(kind, f"{rounded:.2e}", f"{awq:.2e}", f"{saved:.2e}", f"{saved / rounded:.2f}", mean)
    return table


def _show_decode(out: Terminal, result: Any) -> None:
    _heading(out, result)
    table = new_table("prompt", "prompt\ntokens", "new\ntokens", "first\ntoken ms", "ms per\ntoken", "tokens\nper s")
    for row in result.responses:
        rate = 1e3 / row.ms_per_token if row.ms_per_token else None
        table.add_row(
            name_cell(row.prompt),
            str(row.prompt_tokens),
            str(row.new_tokens),
            number(row.ttft_ms),
            number(row.ms_per_token),
            number(rate),
        )
    out.print(table)
    drafted = [row.draft for row in result.responses if row.draft is not None]
    if drafted:
        out.print(_drafted(together(drafted)), markup=False, soft_wrap=True)


def _drafted(drafted: Drafted) -> str:
    return f"draft: {drafted.accepted} of {drafted.proposed} proposed tokens accepted, {passes(drafted)}"


def _show_chat(out: Terminal, result: Any) -> None:
    """On a terminal; what is piped are the answers."""
    if out.is_terminal and result.turns:
        written = sum(turn.new_tokens for turn in result.turns)
        answers = "1 answer" if len(result.turns) == 1 else f"{len(result.turns)} answers"
        out.print(f"{answers}, {written} tokens, on {result.backend}", markup=False)


def _show_serve(out: Terminal, result: Any) -> None:
    answers = sum(result.ended.values())
    out.print(f"{answers} answers, {result.written} tokens written", markup=False)
    if result.draft is not None:
        out.print(_drafted(result.draft), markup=False)


def _show_benchmark(out: Terminal, result: Any) -> None:
    _heading(out, result)
    if result.latency_model is not None:
        out.print("times below are those of the emulation on this machine's CPU, not of an NPU")
    table = new_table("prompt\ntokens", "first\ntoken ms", "prefill\ntokens/s", "ms per\ntoken", "decode\ntokens/s")
    for row in result.rows:
        table.add_row(
            str(row.prompt_tokens),
            number(row.ttft_ms),
            number(row.prefill_tok_s),
            number(row.ms_per_token),
            number(row.decode_tok_s),
        )
    out.print(table)
    if result.latency_model is not None:
        _show_modelled(out, result)
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    out.print(f"{threads}, weights {amount(result.model_bytes)}, peak memory {amount(result.peak_rss_bytes)}")


def _show_modelled(out: Terminal, result: Any) -> None:
    """Beside the emulation's wall time, never in one table with it."""
    out.print("\n[bold]modelled[/bold], not measured: the matmuls alone on the NPU, without the host's part")
    table = new_table(
        "prompt\ntokens", "modelled\nfirst ms", "modelled\nms/token", "calls per\nprompt",
        "calls per\ntoken", "MB per\ntoken", "padding",
    )  # fmt: skip
    for row in result.rows:
        modelled = row.modelled
        table.add_row(
            str(row.prompt_tokens),
            number(modelled.ttft_ms),
            number(modelled.ms_per_token),
            str(modelled.dispatches_per_prompt),
            str(modelled.dispatches_per_token),
            number(modelled.bytes_per_token / 1e6, 0),
            f"{modelled.padding_waste:.1%}",
        )
    out.print(table)
    out.print("by these figures (docs/aie.md):")
    for name, figure in result.latency_model.items():
        out.print(f"  {name} = {figure['value']:g} {figure['unit']} ({figure['source']})", markup=False, soft_wrap=True)


def _show_perplexity(out: Terminal, result: Any) -> None:
    _heading(out, result)
    out.print(
        f"perplexity [bold]{result.perplexity:.3f}[/bold] of {plain(result.dataset)}: {result.n_windows} x "
        f"{result.window} tokens, {result.tokens} predicted, {result.seconds:.1f} s",
        soft_wrap=True,
    )


def _show_evaluate(out: Terminal, result: Any) -> None:
    _heading(out, result)
    columns = ("task", "metric", "value", "+/-", *("float", "+/-") * (result.float_model is not None), "of")
    table = new_table(*columns)
    for score in result.scores:
        figures = [score.value, score.stderr, score.float_value, score.float_stderr][: len(columns) - 3]
        count = f"{score.examples} {'windows' if score.task == 'perplexity' else 'questions'}"
        table.add_row(score.task, score.metric, *(number(figure, 4) for figure in figures), count)
    out.print(table)
    out.print(f"{result.seconds:.1f} s")


OPENS = "README.md says what opens it"


def _show_export(out: Terminal, result: Any) -> None:
    scales = result.scales
    rounded = f"scales changed by {scales.mean:.1e} on average, {scales.largest:.1e} at most"
    if scales.largest == 0:
        rounded = "its scales as they were"
    out.print(
        f"{plain(result.source)}: {result.w_bit} bits in groups of {result.group_size} as {result.format}, "
        f"{amount(result.bytes)}, {rounded}, {result.seconds:.1f} s",
        soft_wrap=True,
    )
    if result.kept:
        out.print(f"written as floats: {', '.join(result.kept)}", soft_wrap=True)
    opens = "llama-cli -m and what else is made of llama.cpp open it" if result.format in GGUF_FLOATS else OPENS
    out.print(f"saved in [bold]{plain(result.checkpoint)}[/bold]; {opens}", soft_wrap=True)
    if result.pushed:
        out.print(f"pushed to {plain(result.pushed)}", soft_wrap=True)


SHOW: dict[str, Callable[[Terminal, Any], None]] = {
    "quantize": _show_quantize,
    "dry_run": show_forecast,
    "decode": _show_decode,
    "chat": _show_chat,
    "serve": _show_serve,
    "benchmark": _show_benchmark,
    "benchmark_long": _show_benchmark,
    "perplexity": _show_perplexity,
    "evaluate": _show_evaluate,
    "export": _show_export,
}
