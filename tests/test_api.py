"""The Python API as somebody else's program sees it: a fresh process in a folder of its own, `import run_awq`."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qlinear.backends.cpu import native
from tests.quantized import save_float

ROOT = Path(__file__).parent.parent
NAMES = ["Awq", "AwqError", "Note", "Recipe", "Step", "__version__", "export", "load", "quantize"]

# What every program below begins with. `reference` computes in float64 from the logits, one window after the other.
BEGINNING = """
import json, math
from pathlib import Path
from run_awq import AwqError, Recipe, load, quantize

TEXT = " ".join(f"w{3 + 7 * index % 120}" for index in range(70))

def recipe(**changes):
    plain = dict(group_size=32, awq="none", seqlen=16, n_samples=8, calib_data="float.txt")
    return Recipe(**plain | changes)

def reference(model, text, window):
    import torch
    ids = torch.tensor(model.tokenizer(text)["input_ids"])
    total = count = 0
    for part in ids[: len(ids) // window * window].view(-1, window):
        rows = model.logits(part).double().log_softmax(-1)[:-1]
        total -= rows.gather(1, part[1:, None]).sum().item()
        count += window - 1
    return math.exp(total / count)

def measured(model):
    import torch
    prompts = ["w5 w9 w40", "w77"]
    how = dict(max_new_tokens=12)
    tokens = list(range(3, 25))
    logits = model.logits(tokens)
    assert logits.dtype == torch.float32 and torch.equal(model.logits(torch.tensor(tokens)), logits)
    return dict(
        about=repr(model), precision=model.about.precision, answers=model.generate(prompts, **how),
        streamed=["".join(model.stream(prompt, **how)) for prompt in prompts], shape=list(logits.shape),
        likeliest=logits.argmax(-1).tolist(), rms=logits.double().square().mean().sqrt().item(),
        perplexity=model.perplexity(TEXT, window=16), expected=reference(model, TEXT, 16),
    )
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A float model and its text in a folder that holds nothing of this project."""
    save_float(tmp_path / "float")
    return tmp_path


def run(folder: Path, code: str) -> str:
    """What a program prints; it has to end well and say nothing on standard error."""
    (folder / "program.py").write_text(textwrap.dedent(code), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AWQ_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_it_does_nothing(tmp_path):
    program = """
        import os, sys, threading
        before = dict(os.environ), os.getcwd(), threading.active_count()
        import run_awq
        assert before == (dict(os.environ), os.getcwd(), threading.active_count())
        heavy = ("torch", "numpy", "transformers", "safetensors", "datasets", "gguf", "rich", "click", "awq_cli")
        run_awq.Recipe(w_bit=3)
        found = [name for name in heavy if name in sys.modules]
        print(found, sorted(run_awq.__all__))
    """
    assert run(tmp_path, program) == f"[] {NAMES}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


def assert_measured(found: dict) -> None:
    assert found["streamed"] == found["answers"] and all(found["answers"])
    assert found["shape"] == [22, 128]
    assert found["perplexity"] == pytest.approx(found["expected"], rel=1e-5)
    assert 2 < found["perplexity"] < 1000


def test_quantize_and_load(folder):
    output = run(folder, BEGINNING + """
events = []
result = quantize(Path("float"), Path("q"), recipe(calib_data=Path("float.txt")), progress=events.append)
quantized = measured(load(Path(result.checkpoint)))
flash = measured(load("q", flash_attention=True))
floats = measured(load("float", precision="bf16"))
print(json.dumps([result.checkpoint, len(events), quantized, flash, floats]))
""")  # fmt: skip
    checkpoint, told, quantized, flash, floats = json.loads(output)  # nothing else was printed
    assert (checkpoint, told) == ("q", 3) and (folder / "q" / "model.safetensors").is_file()
    for found, precision in ((quantized, "w4abf16"), (flash, "w4abf16"), (floats, "bf16")):
        assert_measured(found)
        assert found["precision"] == precision
    assert quantized["about"].startswith("Model('q' on cpu/")
    by_kernels = quantized["about"].replace("'q'", "'float'").replace(")", " bf16)")
    assert floats["about"] == (by_kernels if native.is_built() else "Model('float' on cpu/torch bf16)")
    # four bits are near the float model and not the same; the two ways to run them are nearer still
    assert 1e-3 < abs(quantized["rms"] / floats["rms"] - 1) < 0.1
    assert abs(quantized["rms"] / flash["rms"] - 1) < 1e-2
    agreed = [one == other for one, other in zip(quantized["likeliest"], flash["likeliest"], strict=True)]
    assert sum(agreed) >= len(agreed) - 2


def test_the_same_in_a_process_of_its_own(folder):
    """A "spawn" child imports everything anew, and gets recipes, results and errors by pickle."""
    output = run(folder, BEGINNING + """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def work(wanted):
    quantize("float", "child", wanted)
    return measured(load("child"))

def fail(wanted):
    load("absent")

if __name__ == "__main__":
    quantize("float", "here", recipe(w_bit=3))
    here = measured(load("here"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        child = pool.submit(work, recipe(w_bit=3)).result()
        result = pool.submit(quantize, "float", "again", recipe(w_bit=3)).result()
        try:
            pool.submit(fail, recipe()).result()
        except AwqError as error:
            told = str(error)
    print(json.dumps([here, child, result.w_bit, told]))
""")  # fmt: skip
    here, child, bits, told = json.loads(output)
    assert_measured(here)
    assert child | {"about": here["about"]} == here and child["about"] != here["about"]
    assert bits == 3 and told.startswith("absent is not a checkpoint")
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("here", "child", "again")]
    assert weights[0] == weights[1] == weights[2]


def test_texts_begun_before_others_are_done(folder):
    """Streams that are read in turns, and a score in between: each is what it is alone."""
    output = run(folder, BEGINNING + """
quantize("float", "q", recipe())
for flash in (False, True):
    model = load("q", flash_attention=flash)
    prompts, how = ["w5 w9", "w77", "w40 w5 w9"], dict(max_new_tokens=12)
    alone = [list(model.stream(prompt, **how)) for prompt in prompts]
    score = model.perplexity(TEXT, window=16)
    turns = list(zip(*(model.stream(prompt, **how) for prompt in prompts), strict=True))
    assert [list(pieces) for pieces in zip(*turns)] == alone
    begun = model.stream(prompts[2], **how)
    pieces = [next(begun), next(begun)]
    assert model.perplexity(TEXT, window=16) == score
    assert pieces + list(begun) == alone[2]
    next(model.stream(prompts[0], **how))  # and never read on
    assert model.generate(prompts[1:2], **how) == ["".join(alone[1])]
print("done")
""")  # fmt: skip
    assert output == "done\n"


def test_numbers_of_numpy_are_numbers(folder):
    """Small ones, which overflow."""
    output = run(folder, BEGINNING + """
import numpy as np
from fractions import Fraction

quantize("float", "q", recipe(w_bit=np.int64(4)))
model, prompt = load("q", flash_attention=np.True_, kv_bits=np.int64(16)), " ".join(["w5 w9"] * 50)
expected = model.generate([prompt], max_new_tokens=100)
assert model.generate([prompt], max_new_tokens=np.uint8(100)) == expected
assert model.generate([prompt], max_new_tokens=np.int8(100), chat=np.False_) == expected
drawn = [
    model.generate(["w5"], max_new_tokens=9, temperature=half, top_k=five, seed=seed)
    for half, five, seed in ((0.5, 5, 3), (Fraction(1, 2), np.uint8(5), np.int16(3)))
]
assert drawn[0] == drawn[1]
score = model.perplexity(TEXT * 8, window=16, n_windows=32)
assert model.perplexity(TEXT * 8, window=np.int8(16), n_windows=np.uint8(32)) == score
print("done")
""")  # fmt: skip
    assert output == "done\n"


def test_a_model_stays_the_one_that_was_loaded(folder):
    """Its modules are opened when they are first asked for: of the same files, wherever one is by then."""
    output = run(folder, BEGINNING + """
import os

quantize("float", "q", recipe())
here = os.getcwd()
model, other = load("q"), load("q")
os.chdir("/")
assert type(model.module).__name__ == "LlamaForCausalLM"
os.chdir(here)
os.makedirs("elsewhere/inner")
os.symlink("elsewhere/inner", "link")
os.rename("q", "elsewhere/q")
linked = load("link/../q")  # which is in the folder that the link leads into
assert linked.generate(["w5 w9"], max_new_tokens=5) and type(linked.module).__name__ == "LlamaForCausalLM"
os.rename("elsewhere/q", "q")
quantize("float", "q", recipe(w_bit=3), overwrite=True)
before = other.generate(["w5 w9"], max_new_tokens=5)
try:
    other.module
    print("opened")
except AwqError as error:
    print(error)
assert other.generate(["w5 w9"], max_new_tokens=5) == before
""")  # fmt: skip
    assert output == ("q is not what it was when it was loaded; load it again\n" if native.is_built() else "opened\n")


def test_mistakes_are_told_in_one_line_of_fields(folder):
    output = run(folder, BEGINNING + """
import numpy as np
quantize("float", "q", recipe())
model = load("q")
tries = [
    lambda: Recipe(w_bit=5), lambda: quantize("absent/model/name"), lambda: quantize("float", "q", recipe()),
    lambda: quantize("float", "r", recipe(), resume=True), lambda: quantize("q", "r", recipe()),
    lambda: quantize("float", "r", recipe(awq="load", scales="absent.pt")),
    lambda: quantize("float", "cache.txt", recipe(calib_data="absent.txt", solver="gptq")),
    lambda: load("absent"), lambda: load("float"), lambda: load("q", target="gpu"), lambda: load("q", precision="fp8"),
    lambda: load("absent", precision="bf16"), lambda: load("float", precision="bf16", target="aie_emu"),
    lambda: load("q", target="aie_emu", device="none"), lambda: load("q", target="aie_emu", latency={"none": 1}),
    lambda: model.generate("text"), lambda: model.generate([""]), lambda: model.generate(["w5"], chat=True),
    lambda: model.generate(["w5"], max_new_tokens=256), lambda: model.generate(["w5"], max_new_tokens=0),
    lambda: model.generate(["w5"], temperature=-1.0), lambda: model.generate(["w5"], top_p=0),
    lambda: model.stream(123), lambda: model.stream("w5", max_new_tokens=None), lambda: model.stream("w5", seed=-1),
    lambda: model.stream("w5", max_new_tokens=2.0), lambda: model.generate(7), lambda: model.generate([None]),
    lambda: model.stream("w5", temperature="hot"), lambda: model.stream("w5", temperature=1.0, top_k=1.5),
    lambda: model.stream("w5", temperature=1.0, top_p="all"), lambda: model.perplexity(b"w5 w6", window=16),
    lambda: model.perplexity(TEXT, window="16"), lambda: model.perplexity(TEXT, window=16, n_windows=1.0),
    lambda: model.logits([]), lambda: model.logits([[1, 2]]), lambda: model.logits([0.5]),
    lambda: model.logits([5] * 257), lambda: model.logits([5, 128]), lambda: model.logits([-1]),
    lambda: model.logits("w5"), lambda: model.perplexity(TEXT, window=1), lambda: model.perplexity(TEXT, window=0),
    lambda: model.perplexity(TEXT, window=16, n_windows=0),
    lambda: model.perplexity("w5 w6"), lambda: model.perplexity(TEXT, window=300),
    lambda: model.perplexity(TEXT, window=16, n_windows=100), lambda: model.perplexity("w5", window=16),
    lambda: load("q", flash_attention=0), lambda: load("q", flash_attention="no"), lambda: load("q", kv_bits=8.0),
    lambda: load("q", kv_bits="8"), lambda: load("q", head_bits=np.array([8, 16])), lambda: load("q", target=["cpu"]),
    lambda: load("q", precision=None), lambda: load("a" * 300), lambda: load(chr(0)), lambda: load("q", draft=7),
    lambda: load("q", trust_remote_code="no"), lambda: quantize("float", 0), lambda: quantize("float", False),
    lambda: quantize("float", "r", recipe(), overwrite="no"), lambda: quantize("float", "r", recipe(), resume=1),
    lambda: model.perplexity(TEXT, window=16, bos="no"), lambda: model.stream("w5", chat="no"),
    lambda: model.stream("w5", temperature=10**400), lambda: model.logits([True]), lambda: model.logits(["1"]),
]
told = []
for one in tries:
    try:
        one()
    except AwqError as error:
        told.append(str(error))
    else:
        told.append("")
print(json.dumps(told))
""")  # fmt: skip
    for message in json.loads(output):
        assert message and "\n" not in message and "--" not in message and len(message) < 500, message
    assert not (folder / "r").exists()
