"""Every option of the command, defined once. A task takes the options that its request has a field for."""

import click

from awq_cli.choices import AsWritten
from checkpoints.formats.names import FORMATS
from qlinear.backends.registry import HEAD_BITS, KV_BITS, PRECISIONS, TARGETS
from qlinear.sizes import BITS, GROUP_SIZES
from qlinear.version import __version__
from quantization.methods import METHODS
from quantization.recipe import EMBEDDING_BITS, Awq, Recipe

TASKS = ("quantize", "decode", "chat", "serve", "benchmark", "benchmark_long", "perplexity", "evaluate", "export")

# The recipe's defaults are the command's.
DEFAULTS = Recipe()

task = click.option("--task", type=click.Choice(TASKS), required=True, metavar="NAME", help=", ".join(TASKS) + ".")

model_name = click.option(
    "--model_name",
    default="smollm2-135m-instruct",
    show_default=True,
    metavar="NAME",
    help="Embedded name, local directory, .gguf file or hub id of the float model.",
)
w_bit = click.option(
    "--w_bit", type=click.Choice(BITS), default=DEFAULTS.w_bit, show_default=True, help="Bits per weight."
)
group_size = click.option(
    "--group_size",
    type=click.Choice(GROUP_SIZES),
    help="Weights that share a scale.  [default: the largest of 128, 64, 32 that divides every layer]",
)
bits_per_weight = click.option(
    "--bits_per_weight",
    type=float,
    help="3 or 4 bits and a group size for each layer as it needs them, so many bits in the mean, scales and zero "
    "points counted; in the place of --w_bit.",
)
symmetric = click.option(
    "--symmetric",
    is_flag=True,
    help="The same zero point for every group, at some cost in quality (docs/quantization.md).",
)
awq = click.option(
    "--awq",
    type=click.Choice([choice.value for choice in Awq]),
    default=DEFAULTS.awq.value,
    show_default=True,
    help="Load AWQ scales from a file, run the search for them, or round plainly (none); auto loads if a file that "
    "fits is there, else runs.",
)
scales = click.option(
    "--scales",
    type=click.Path(),
    help="MIT-Han-Lab result file to load or to write.  [default: $AWQ_CACHE/<model>-w<bits>-g<group>.pt]",
)
solver = click.option(
    "--solver",
    type=click.Choice(list(METHODS)),
    help="How codes are chosen: "
    + ", ".join(f"{method.description} ({name})" for name, method in METHODS.items())
    + ".  [default: gptq; rtn with --awq load and --awq none]",
)
distill = click.option(
    "--distill",
    type=click.IntRange(0),
    default=DEFAULTS.distill,
    show_default=True,
    metavar="STEPS",
    help="Fit all scales to the float model's predictions in the end, in steps of 1024 tokens (60 do); takes about a "
    "byte of memory a weight.",
)
lm_head = click.option("--lm_head", is_flag=True, help="Quantize the output head too, per group.")
lm_head_group_size = click.option(
    "--lm_head_group_size",
    type=click.Choice(GROUP_SIZES),
    help="Group size of the head; needs --lm_head.  [default: that of the other layers, the only one that transformers "
    "reads with compressed-tensors 0.19 and later]",
)
embedding_bits = click.option(
    "--embedding_bits",
    type=click.Choice(EMBEDDING_BITS),
    default=DEFAULTS.embedding_bits,
    show_default=True,
    help="Of the embedding in the file, and of a head that is the same matrix. 8: this program alone opens it.",
)
calib_data = click.option(
    "--calib_data",
    default=DEFAULTS.calib_data,
    show_default=True,
    metavar="SOURCE",
    help="Calibration text: builtin, self (what the model itself writes), a UTF-8 file, or pileval, wikitext2, c4 from "
    "the hub.",
)
n_samples = click.option(
    "--n_samples", type=click.IntRange(1), default=DEFAULTS.n_samples, show_default=True, help="Calibration samples."
)
seqlen = click.option(
    "--seqlen",
    type=click.IntRange(8),
    default=DEFAULTS.seqlen,
    show_default=True,
    help="Tokens per calibration sample.",
)
bos = click.option(
    "--bos/--no_bos",
    default=DEFAULTS.bos,
    help="Put the token for the beginning of a text before the text that is calibrated on or scored, once.  [default: "
    "as the model's tokenizer does]",
)
seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=DEFAULTS.seed,
    show_default=True,
    help="Draws the calibration samples; with --temperature, the tokens.",
)
precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="w4abf16",
    show_default=True,
    help="Run the quantized checkpoint (w4abf16, at 3 bits too), the same with activations rounded to int8 (w4aint8: "
    "faster prompts on the cpu, at some cost in quality, docs/int8.md), or the float model (bf16).",
)
kv_bits = click.option(
    "--kv_bits",
    type=click.Choice(KV_BITS),
    default=16,
    show_default=True,
    help="Bits of keys and values in the cache: bfloat16, or on the cpu int8 with a scale for each head and position: "
    "half the memory, faster over long contexts (docs/contexts.md).",
)
head_bits = click.option(
    "--head_bits",
    type=click.Choice(HEAD_BITS),
    default=16,
    show_default=True,
    help="Bits of an output head that is not quantized: bfloat16, or on the cpu int8, read in half the time "
    "(docs/int8.md).",
)
target = click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default="cpu",
    show_default=True,
    help="Where it runs. aie without an NPU, and aie_emu, emulate the NPU's arithmetic on the CPU.",
)
device = click.option(
    "--device",
    type=click.Choice(["phx", "stx"]),
    default="phx",
    show_default=True,
    help="Which NPU --target aie is: phx (XDNA 1) or stx (XDNA 2).",
)
latency = click.option(
    "--latency", multiple=True, metavar="NAME=VALUE", help="Replace a figure of the NPU's latency model (docs/aie.md)."
)
flash_attention = click.option(
    "--flash_attention/--no_flash_attention",
    default=None,
    help="Run the whole stack as one call a token where model and target allow it; else with q/k/v and gate/up as one "
    "matmul each and a static KV cache.  [default: on, unless it was set otherwise when quantized]",
)
prompt = click.option(
    "--prompt",
    multiple=True,
    metavar="TEXT",
    help="Prompt to decode, @FILE, or - for standard input; may be given again.",
)
chat = click.option(
    "--chat/--raw",
    default=None,
    help="Put each prompt through the model's chat template, or continue it as it is.  [default: --chat with --prompt, "
    "where the model has a template]",
)
system = click.option(
    "--system", metavar="TEXT", help="What the model is told before a conversation or an answer: TEXT or @FILE."
)
stop = click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help="End an answer where this text would come, which is not shown; may be given again.",
)
context = click.option(
    "--context",
    type=click.IntRange(32),
    help="Tokens of a conversation that the model sees; in chat the oldest turns leave, served ones have no more."
    "  [default: the model's own, 8192 at most]",
)
host = click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to answer at; 0.0.0.0 for all of this machine's."
)
port = click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to answer at; 0 for any."
)
api_key = click.option("--api_key", metavar="KEY", help="What clients have to show.  [default: $RUN_AWQ_API_KEY]")
allow_origin = click.option(
    "--allow_origin", multiple=True, metavar="ORIGIN", help="Let web pages ask: of http://localhost:3000, or * for any."
)
slots = click.option(
    "--slots", type=click.IntRange(1, 64), default=4, show_default=True, help="Answers to write at once."
)
max_new_tokens = click.option(
    "--max_new_tokens",
    type=click.IntRange(1),
    help="Tokens to write at most.  [default: 256 after a --prompt, 1024 in a conversation, 11 otherwise]",
)
temperature = click.option(
    "--temperature", type=click.FloatRange(0, min_open=True), help="Draw tokens at this temperature.  [default: greedy]"
)
top_k = click.option("--top_k", type=click.IntRange(1), help="Draw among the k likeliest tokens only.")
top_p = click.option(
    "--top_p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw among the likeliest tokens that reach this probability together.",
)
min_p = click.option(
    "--min_p",
    type=click.FloatRange(0, 1),
    help="Draw among tokens at least so probable as this share of the likeliest.",
)
draft = click.option(
    "--draft",
    metavar="lookup|CHECKPOINT",
    help="Have tokens proposed, to read several at a time: from the text so far (lookup), or by a smaller checkpoint "
    "with the same tokens. Answers stay the same, token by token (docs/speculation.md).",
)
dataset = click.option(
    "--dataset",
    metavar="SOURCE",
    help="Text to score, or to cut benchmark prompts from: raw or non-raw (wikitext-2 from the hub), or a UTF-8 file."
    "  [default: raw for perplexity and, without --eval_data, evaluate; built-in text for benchmarks]",
)
window = click.option(
    "--window", type=click.IntRange(2), default=2048, show_default=True, help="Tokens scored together."
)
n_windows = click.option("--n_windows", type=click.IntRange(1), help="Windows to score.  [default: all]")
tasks = click.option(
    "--tasks",
    default="perplexity,truthfulqa_mc2,winogrande,arc_challenge",
    show_default=True,
    metavar="NAMES",
    help="What to evaluate, with commas between: these, and whatever the installed lm-eval knows.",
)
shots = click.option(
    "--shots",
    type=click.IntRange(0),
    help="Answered questions before each, where a task takes any.  [default: as lm-eval has it]",
)
eval_data = click.option(
    "--eval_data",
    type=click.Path(),
    metavar="DIR",
    help="Directory with the tasks' questions and text (docs/evaluation.md).  [default: from the hub]",
)
limit = click.option("--limit", type=click.IntRange(1), help="Questions to answer per task.  [default: all]")
float_model = click.option(
    "--float_model",
    metavar="NAME",
    help="Float model to evaluate beside the checkpoint, or none.  [default: the one it was made from]",
)
output = click.option("--output", type=click.Path(), help="Where to save the checkpoint.")
checkpoint = click.option("--checkpoint", type=click.Path(), help="Checkpoint to run.")
format_ = click.option(
    "--format",
    type=AsWritten(FORMATS),
    help="Write the checkpoint for other programs too: AutoAWQ's format, GPTQ's, compressed-tensors with one group "
    "size, or a GGUF file for llama.cpp, its embedding in 8 bits, float16 or bfloat16.  [needed by --task export]",
)
push = click.option("--push", metavar="ORG/NAME", help="Upload what was exported to this repository of the hub.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is already there.")
resume = click.option(
    "--resume", is_flag=True, help="Go on where a run with these options was stopped, to the same checkpoint."
)
dry_run = click.option(
    "--dry_run",
    is_flag=True,
    help="Write nothing: tell what quantizing would make and take; a config.json alone will do.",
)
tensor_parallel = click.option(
    "--tensor_parallel",
    type=click.IntRange(1, 1024),
    help="With --dry_run: whether vLLM can serve it over so many shards.",
)
num_torch_threads = click.option(
    "--num_torch_threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: torch's own choice]"
)
json_file = click.option("--json", "json_file", type=click.Path(), help="Write the result to a JSON file.")
csv_file = click.option("--csv", "csv_file", type=click.Path(), help="Write the benchmark's rows to a CSV file.")
trust_remote_code = click.option("--trust_remote_code", is_flag=True, help="Let the model's own Python code run.")

quiet = click.option("--quiet", is_flag=True, help="No notes and no progress, only results.")
version = click.version_option(__version__, message="run_awq %(version)s")
