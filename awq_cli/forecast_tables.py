"""What a dry run tells, in tables of 60 columns at most."""

from typing import Any

from rich.console import Console as Terminal

from awq_cli.layout import amount, name_cell, new_table, number, plain
from awq_cli.spelling import as_options


def show_forecast(out: Terminal, result: Any) -> None:
    looked = "" if result.examined else ", by shapes alone: no weights to look at"
    out.print(
        f"{plain(result.model)}: {result.blocks} blocks, {result.weights / 1e9:,.3g} billion weights{looked}",
        soft_wrap=True,
    )
    out.print(_layer_table(result))
    for layer in result.layers:
        if layer.reason and layer.shape:
            reason = as_options(layer.reason)
            out.print(f"stays in bfloat16: {_short(layer.name)} ({reason})", markup=False, soft_wrap=True)
    decoder = [layer for layer in result.layers if layer.reason is None]
    bits = sum(layer.bits * layer.bytes for layer in decoder) / max(sum(layer.bytes for layer in decoder), 1)
    out.print(
        f"\n{amount(result.float_bytes)} in bfloat16 -> {amount(result.bytes)}, {bits:.2f} bits a weight "
        f"({8 * result.bytes / max(result.weights, 1):.2f} with the rest)",
        soft_wrap=True,
    )
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in result.parts.items())
    out.print(
        f"time: {duration(result.seconds)} ± {result.error:.0%}, on this machine with nothing else to do",
        soft_wrap=True,
    )
    out.print(f"  {parts}", soft_wrap=True)
    out.print(f"memory: {amount(result.memory_bytes)} at most{_free(result.memory_free)}", soft_wrap=True)
    out.print(f"disk: {amount(result.disk_bytes)} on the way{_free(result.disk_free)}", soft_wrap=True)
    if len(result.ranks) > 1:
        out.print(_rank_table(result))
    _show_shards(out, result)


def _layer_table(result: Any):
    made = new_table("layer", "count", "shape", "bits", "MB out")
    for layer in result.layers:
        shape = " x ".join(map(str, layer.shape)) or "-"
        cells = (str(layer.count), shape, f"{layer.bits:.2f}", number(layer.bytes / 1e6))
        made.add_row(name_cell(_short(layer.name)), *cells)
    return made


def _rank_table(result: Any):
    made = new_table("ranks\n(torchrun)", "time", "memory of\neach, GB", "received by\neach, GB")
    for row in result.ranks:
        gigabytes = (number(count / 1e9) for count in (row.memory_bytes, row.received_bytes))
        made.add_row(str(row.ranks), duration(row.seconds), *gigabytes)
    return made


def _show_shards(out: Terminal, result: Any) -> None:
    if result.asked_shards is None:
        if result.shards:
            out.print(f"vLLM serves it with --tensor-parallel-size {served(result.shards)}", soft_wrap=True)
        return
    refused = [fault for fault in result.misfits if not fault.served]
    padded = [fault for fault in result.misfits if fault.served]
    asked = f"over {result.asked_shards} shards" if result.asked_shards > 1 else "whole"
    verdict = "cannot be served" if refused else "is served" if not padded else "is served, padded,"
    out.print(f"it {verdict} {asked} by vLLM (docs/scale.md)", soft_wrap=True)
    for fault in refused or padded:
        out.print(f"  {_short(fault.layer)}: {fault.reason}", markup=False, soft_wrap=True)


def served(shards: list[int]) -> str:
    """In words: 1, 2 or 4."""
    *first, last = map(str, shards)
    return f"{', '.join(first)} or {last}" if first else last


def duration(seconds: float) -> str:
    if seconds < 99:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5940 else f"{seconds / 3600:,.1f} h"


def _short(name: str) -> str:
    """Without what all blocks are called."""
    return name.partition("*.")[2] or name.removeprefix("model.")


def _free(free: int | None) -> str:
    return "" if free is None else f", {amount(free)} free here"
