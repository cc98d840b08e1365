"""Three kinds of text to tell recipes apart by, none of which anything was fitted to."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.generate import generate
from engine.model import Model
from engine.sampling import sampler
from engine.scoring import cut_windows

# Of Python's own library, whose sources lie on every machine that runs this.
MODULES = (
    "argparse bisect calendar cmd configparser contextlib copy csv dataclasses datetime difflib enum fractions "
    "functools gettext heapq inspect locale mailbox numbers pprint queue random sched shlex shutil statistics "
    "string tempfile textwrap threading tokenize traceback uuid zipfile"
).split()

QUESTIONS = (
    "Why is the sky blue at noon and red in the evening?",
    "Explain to a child what a fraction is.",
    "How do I get a stain of red wine out of a shirt?",
    "What is the difference between weather and climate?",
    "Write a short letter in which a neighbour is asked to turn the music down.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "Give me three ideas for a dinner without meat.",
    "Who was Marie Curie, and what did she find out?",
    "Translate into French: The library opens at ten.",
    "What should I look at before I buy a used bicycle?",
    "Summarise the story of Romeo and Juliet in five sentences.",
    "How does a vaccine work?",
    "Write a function in Python that reverses the words of a sentence.",
    "My plant has yellow leaves. What may be wrong?",
    "What is inflation, and whom does it hurt?",
    "Tell me a joke about a programmer.",
    "How do bees make honey?",
    "List the planets of the solar system and one fact about each.",
    "I have an interview tomorrow. How do I prepare for it?",
    "What is the capital of Australia, and why is it not Sydney?",
    "Describe the water cycle.",
    "Write a poem of eight lines about the sea in winter.",
    "If a shirt costs 40 dollars and is reduced by 15 percent, what do I pay?",
    "What does a judge do?",
)


@dataclass(frozen=True)
class Passage:
    """Tokens `(length,)`, of which those from `first` on are predicted and count."""

    tokens: np.ndarray
    first: int = 1


def web(model: Model, file: Path, count: int, window: int) -> list[Passage]:
    """The first windows of a text file."""
    tokens = model.encode(file.read_text(encoding="utf-8"))
    return [Passage(one) for one in cut_windows(tokens, window, count, file.name)]


def code(model: Model, count: int, window: int) -> list[Passage]:
    """The beginnings of some of Python's modules, one each."""
    sources = (Path(importlib.util.find_spec(name).origin) for name in MODULES[:count])
    return [Passage(model.encode(source.read_text(encoding="utf-8"))[:window]) for source in sources]


def chat(model: Model, count: int, most: int, questions: Sequence[str] = QUESTIONS) -> list[Passage]:
    """Questions through the model's template, and the float model's own answers of up to `most` tokens, which count."""
    made = []
    for seed, question in enumerate(questions[:count]):
        prompt = model.encode_chat([{"role": "user", "content": question}])
        decoder = model.decoder(len(prompt) + most)
        choose = sampler(temperature=0.7, top_p=0.95, seed=seed)
        answer = [token.id for token in generate(decoder, prompt, most, model.end_tokens, choose)]
        made.append(Passage(np.concatenate([prompt, np.array(answer, prompt.dtype)]), len(prompt)))
    return made
