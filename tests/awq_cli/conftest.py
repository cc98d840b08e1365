"""The command, run in this process on a tiny model: what it exits with, prints and leaves on disk."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

from awq_cli.main import main
from tests.awq_cli.served import Server
from tests.tiny import tiny_model

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the command has it: before anything is multiplied

VOCABULARY, CONTEXT = 512, 600
# What every run on the CPU says where the package was installed without a compiler: true, but of the machine.
SLOW = "note: running in plain torch, many times slower: "
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }} {{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }} assistant{% endif %}"
)
# As many samples as a search needs to have something to compare.
CALIBRATION = ("--n_samples", "4", "--seqlen", "32")


@dataclass(frozen=True)
class Outcome:
    """out: what went to standard output; notes: the lines of standard error."""

    code: int
    out: str
    notes: list[str]

    @property
    def error(self) -> str:
        """The one line that tells what was wrong; exit status 2, no results and no traceback are part of it."""
        assert self.code == 2 and self.out == "" and self.notes, self
        assert all(line.startswith("note: ") for line in self.notes[:-1]), self.notes
        assert self.notes[-1].startswith("error: "), self.notes
        return self.notes[-1].removeprefix("error: ")


@dataclass(frozen=True)
class Command:
    """`run_awq.py` called from `folder`, its scales cache in `folder/cache`, on a terminal of some `columns`."""

    folder: Path
    columns: int = 80

    def __call__(self, *arguments: str | Path) -> Outcome:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setenv("AWQ_CACHE", str(self.folder / "cache"))
            patch.setenv("COLUMNS", str(self.columns))
            patch.setattr(sys, "argv", ["run_awq.py", *map(str, arguments)])
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode("utf-8"))
        return Outcome(code, texts[0], [line for line in texts[1].splitlines() if not line.startswith(SLOW)])

    def result(self, *arguments: str | Path) -> dict:
        """Of a run that succeeds: what `--json` writes."""
        outcome = self(*arguments, "--json", "result.json")
        assert outcome.code == 0, outcome.notes
        return json.loads((self.folder / "result.json").read_text())

    def left(self) -> list[str]:
        """All that is there, but for what was found out about checkpoints that are."""
        found = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        proven = {path for path in found if path.startswith("cache/proven")}
        if proven and not any(path.startswith("cache/") for path in {*found} - proven):
            proven.add("cache")
        return sorted({*found} - proven)


@pytest.fixture
def run(tmp_path) -> Command:
    (tmp_path / "work").mkdir()
    return Command(tmp_path / "work")


@pytest.fixture(scope="session")
def prose() -> str:
    """A few thousand words of English that every Python carries."""
    return "\n".join(topics[name] for name in sorted(topics))[:40_000]


@pytest.fixture(scope="session")
def text_file(prose, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(prose) -> PreTrainedTokenizerFast:
    """A token a word, `<s>` before a prompt; words that are not among the commonest are unknown."""
    words = Tokenizer(WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words.train_from_iterator([prose], WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=special))
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def make_model(tokenizer) -> Callable[..., Path]:
    """Saves a tiny llama with its tokenizer; its name is the folder's."""

    def make(folder: Path, **overrides) -> Path:
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, **overrides}
        tiny_model("llama", **sizes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def model(make_model, tmp_path_factory) -> Path:
    """in_features are 64 and 128, so groups of 64 are the largest that fit."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rounded(model, tmp_path_factory) -> Path:
    """A plainly rounded 4-bit checkpoint; not to be changed."""
    command = Command(tmp_path_factory.mktemp("rounded"))
    command.result("--task", "quantize", "--model_name", model, "--awq", "none", "--output", "made")
    return command.folder / "made"


@pytest.fixture(scope="session")
def served_checkpoint(rounded, tmp_path_factory):
    """With a chat template, and a penalty for what was said before, so that answers have some variety."""
    folder = tmp_path_factory.mktemp("served") / "served"
    shutil.copytree(rounded, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
    return folder


@pytest.fixture(scope="session")
def server(served_checkpoint):
    with Server(served_checkpoint) as running:
        yield running
