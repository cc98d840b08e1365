"""Answer prompts, one after the other, and time each."""

from dataclasses import dataclass
from statistics import median

from awq_cli.tasks.progress import Progress
from awq_cli.tasks.runner import ModelRequest, ModelResult, Runnable, open_runnable
from awq_cli.tasks.texts import encode
from qlinear.decoder import generate, greedy
from qlinear.errors import OptionError
from qlinear.sampling import sampler

# The ten prompts of the original command.
PROMPTS = (
    "What is the meaning of life?",
    "Tell me something you don't know.",
    "What does Xilinx do?",
    "What is the mass of earth?",
    "What is a poem?",
    "What is recursion?",
    "Tell me a one line joke.",
    "Who is Gilgamesh?",
    "Tell me something about cryptocurrency.",
    "How did it all begin?",
)


@dataclass(frozen=True)
class Request(ModelRequest):
    prompt: tuple[str, ...]
    chat: bool
    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int


@dataclass(frozen=True)
class Response:
    """ttft_ms: prompt in to first token out; ms_per_token: median of the tokens after it, None if there is none."""

    prompt: str
    response: str
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    ms_per_token: float | None


@dataclass(frozen=True)
class Result(ModelResult):
    responses: list[Response]


def run(request: Request, progress: Progress) -> Result:
    runnable = open_runnable(request)
    for note in runnable.notes:
        progress.note(note)
    prompts = request.prompt or PROMPTS
    encoded = [_encode(runnable, prompt, request.chat) for prompt in prompts]
    longest = max(len(tokens) for tokens in encoded)
    runnable.check_fits(
        longest + request.max_new_tokens, f"a --prompt of {longest} and --max_new_tokens {request.max_new_tokens}"
    )
    decoder = runnable.decoder(longest + request.max_new_tokens, progress)
    choose = greedy
    if request.temperature is not None:
        choose = sampler(request.temperature, request.top_k, request.top_p, request.seed)
    responses = []
    for prompt, tokens in zip(prompts, encoded, strict=True):
        out = generate(decoder, tokens, request.max_new_tokens, runnable.end_tokens(), choose)
        responses.append(
            Response(
                prompt,
                runnable.tokenizer.decode(out.tokens, skip_special_tokens=True),
                len(tokens),
                len(out.tokens),
                out.ttft_s * 1e3,
                median(out.step_s) * 1e3 if out.step_s else None,
            )
        )
        progress.partial(responses[-1])
    return Result(**runnable.described("decode", request), responses=responses)


def _encode(runnable: Runnable, prompt: str, chat: bool):
    tokenizer = runnable.tokenizer
    if not prompt.strip():
        raise OptionError(f"--prompt {prompt!r} is empty; give some text")
    if chat:
        if not tokenizer.chat_template:
            raise OptionError("--chat: this model's tokenizer has no chat template; leave --chat out")
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    tokens = encode(tokenizer, prompt, special=not chat)
    if len(tokens) == 0:
        raise OptionError(f"--prompt {prompt!r} has no tokens; give some text")
    return tokens
