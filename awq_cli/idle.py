"""Which options mean nothing beside which values of others."""

from qlinear.backends.registry import NPU_TARGETS
from quantization.methods import METHODS
from quantization.recipe import DEFAULT_SOLVERS, Awq

_WHICH_CHECKPOINT = ("model_name", "w_bit", "bits_per_weight", "group_size", "symmetric", "awq", "solver", "lm_head")
_SAMPLING = ("top_k", "top_p", "min_p", "seed")
_CALIBRATION = ("calib_data", "n_samples", "seqlen", "seed", "bos")


def _quantize(values) -> bool:
    return values["task"] == "quantize"


def _original_prompts(values) -> bool:
    return values["task"] == "decode" and not values["prompt"] and values["chat"] is None


def _reads_no_text(values, awq: str) -> bool:
    """Whether nothing looks at calibration text."""
    solver = values["solver"] or DEFAULT_SOLVERS[Awq(awq)]
    reads = METHODS[solver].reads_text(awq != "none")
    reads = reads or values["distill"] or values["bits_per_weight"] is not None
    return _quantize(values) and values["awq"] == awq and not reads


def _evaluates(values, perplexity: bool) -> bool:
    """Whether the task is to evaluate, without perplexity or else with perplexity alone."""
    names = {name.strip() for name in values["tasks"].split(",")}
    idle = names == {"perplexity"} if perplexity else "perplexity" not in names
    return values["task"] == "evaluate" and idle


# Which options mean nothing beside which: (test of all values, in words, the idle ones).
IDLE = (
    (lambda values: values["bits_per_weight"] is not None, "with --bits_per_weight", ("w_bit",)),
    (lambda values: not values["lm_head"], "without --lm_head", ("lm_head_group_size",)),
    (lambda values: _quantize(values) and values["awq"] == "none", "with --awq none", ("scales",)),
    (lambda values: _reads_no_text(values, "none"), "with --awq none and --solver rtn or hqq", _CALIBRATION),
    (lambda values: _reads_no_text(values, "load"), "with --awq load and --solver rtn", _CALIBRATION),
    (lambda values: _quantize(values) and values["dry_run"], "with --dry_run", ("overwrite", "resume", "format")),
    (lambda values: _quantize(values) and not values["dry_run"], "without --dry_run", ("tensor_parallel",)),
    (lambda values: values["checkpoint"] is not None, "with --checkpoint", _WHICH_CHECKPOINT),
    (lambda values: not _quantize(values) and values["temperature"] is None, "without --temperature", _SAMPLING),
    (lambda values: values["task"] == "decode" and values["chat"] is False, "with --raw", ("system",)),
    (lambda values: _original_prompts(values), "without --prompt or --chat", ("system",)),
    (lambda values: values["target"] not in NPU_TARGETS, "without --target aie", ("device", "latency")),
    (
        lambda values: values["precision"] == "bf16",
        "with --precision bf16",
        ("checkpoint", "float_model", *_WHICH_CHECKPOINT[1:]),
    ),
    (
        lambda values: _evaluates(values, perplexity=False),
        "without perplexity among --tasks",
        ("dataset", "window", "n_windows", "bos"),
    ),
    (lambda values: _evaluates(values, perplexity=True), "with --tasks perplexity", ("limit", "shots", "chat")),
    (
        lambda values: _evaluates(values, perplexity=True) and values["dataset"] is not None,
        "with --tasks perplexity and --dataset",
        ("eval_data",),
    ),
)
