"""The table: one row a type, in words."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from benchmarks.models.record import Outcome, Record, Way


def verdict(record: Record) -> str:
    """What a row comes to: the word first, then why."""
    if record.unbuilt is not None:
        return f"no model: {record.unbuilt}"
    ways = {way.awq: way for way in record.ways}
    for way in ways.values():
        if way.outcome is Outcome.WRONG:
            return f"WRONG: {_numbers(way)}"
        if way.outcome is Outcome.FAULT:
            return f"FAULT: {why(way)}"
    run, none = ways.get("run"), ways.get("none")
    if run is not None and run.outcome is Outcome.WORKS:
        return "works, fused" if run.fused else "works"
    if none is not None and none.outcome is Outcome.WORKS:
        return f"rounding only: {why(run)}"
    last = none or run
    return f"{last.outcome.value}: {why(last)}"


def why(way: Way | None) -> str:
    if way is None or way.error is None:
        return ""
    where = "" if way.outcome is Outcome.REFUSED and way.where == "quantize" else f" [{way.where}]"
    return f"{way.error}{where}"


def _numbers(way: Way) -> str:
    parts = []
    for check in way.wrong_checks():
        if check.median is None or check.worst is None:
            size = "not finite"
        else:
            size = f"{check.worst:.2g}" if check.exact else f"{check.median:.2g} for {check.noise:.2g}"
        parts.append(f"{check.name} {size}")
    return f"awq {way.awq}: " + "; ".join(parts)


def summary(records: Sequence[Record]) -> Counter:
    return Counter(verdict(record).partition(":")[0] for record in records)


def reasons(records: Sequence[Record], awq: str) -> dict[str, list[str]]:
    """Why rows did not work one way -> the rows, those of most rows first; the names in a reason made alike."""
    found = defaultdict(list)
    for record in records:
        for way in record.ways:
            if way.awq == awq and way.outcome is not Outcome.WORKS:
                reason = _numbers(way) if way.outcome is Outcome.WRONG else _alike(why(way), record)
                found[f"{way.outcome.value}: {reason}"].append(record.name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _alike(reason: str, record: Record) -> str:
    """Without what is one row's own: paths, module names, the type, the class."""
    reason = re.sub(r"/\S*/(float|quantized-\w+)", r"\1", reason)
    reason = re.sub(r"\b\w+(\.\w+){2,}", "MODULE", reason)
    model_type = record.name.partition(":")[0]
    reason = re.sub(rf"\b{re.escape(model_type)}(_text)?\b", "TYPE", reason)
    return re.sub(r"\w+For(CausalLM|ConditionalGeneration)", r"ClassFor\1", reason)
