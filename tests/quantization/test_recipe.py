"""What may be asked for, and in which words the rest is refused, long before torch is loaded."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest

from qlinear.errors import OptionError
from quantization.recipe import Awq, Recipe

ROOT = Path(__file__).parents[2]
SIZES = "32, 64, 128, 256"


def test_the_defaults_are_those_of_the_command():
    assert Recipe().to_json() == {
        "w_bit": 4, "bits_per_weight": None, "group_size": None, "symmetric": False, "awq": "auto",
        "scales": None, "solver": None, "distill": 0, "lm_head": False, "lm_head_group_size": None,
        "embedding_bits": 16,
        "calib_data": "builtin", "n_samples": 96, "seqlen": 512, "seed": 42, "bos": None, "flash_attention": None,
    }  # fmt: skip
    assert Recipe().awq is Awq.AUTO


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("w_bit", (3, 4)),
        ("bits_per_weight", (None, 3.1, 3.5, 4.6)),
        ("group_size", (None, 32, 64, 128, 256)),
        ("awq", ("auto", "load", "run", "none")),
        ("solver", (None, "rtn", "hqq", "gptq", "learned")),
        ("lm_head_group_size", (None, 32, 64, 128, 256)),
        ("embedding_bits", (16, 8)),
        ("n_samples", (1, 10**6)),
        ("seqlen", (8, 10**6)),
        ("seed", (0, 2**32 - 1)),
        ("lm_head", (False, True)),
        ("symmetric", (False, True)),
        ("flash_attention", (None, False, True)),
        ("scales", (None, "folder/s.pt")),
        ("calib_data", ("builtin", "self", "c4", "text.txt")),
    ],
)
def test_every_value_that_is_allowed(field, values):
    for value in values:
        recipe = Recipe(**{field: value})
        assert getattr(recipe, field) == value
        assert json.loads(json.dumps(recipe.to_json()))[field] == value


BITS_WORDS, SIZE_WORDS = "is not one of 3, 4", f"is not one of {SIZES}"
AWQ_WORDS, SOLVER_WORDS = "is not one of auto, load, run, none", "is not one of rtn, hqq, gptq, learned"


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("w_bit", (2, 5, 0, -4, 4.0, True, "4", None, [4]), BITS_WORDS),
        ("group_size", (0, 16, 512, -1, 64.0, True, "64", (64,)), SIZE_WORDS),
        ("lm_head_group_size", (0, 48, 32.0, False, "32"), SIZE_WORDS),
        ("awq", ("yes", "", "RUN", None, True, 1), AWQ_WORDS),
        ("solver", ("awq", "", "RTN", False, 0), SOLVER_WORDS),
        ("n_samples", (0, -1, 4.0, True, "4", None), "has to be a whole number from 1 up"),
        ("seqlen", (7, 0, 512.0, True, "512", None), "has to be a whole number from 8 up"),
        ("seed", (-1, 0.0, False, "0", None), "has to be a whole number from 0 up"),
        ("lm_head", ("no", 0, 1, None), "is not one of False, True"),
        ("symmetric", ("no", 0, 1, None), "is not one of False, True"),
        ("flash_attention", ("no", 0, 1.0), "is not one of False, True"),
        ("scales", (7, True, ["s.pt"]), "is not the name of a file"),
        ("calib_data", (7, None, b"text.txt"), "is not the name of a file"),
    ],
)
def test_every_value_that_is_not(field, values, words):
    """A number of another type too: 4.0 and True count as 4 and 1 wherever they are only compared."""
    for value in values:
        with pytest.raises(OptionError) as error:
            Recipe(**{field: value})
        told = repr(value) if value in ("4", "64", "32") and "is not one of" in words else value  # a text of a choice
        assert str(error.value) == f"`{field}={told}` {words}"


def test_numbers_of_numpy_are_numbers():
    given = dict(w_bit=np.int64(3), group_size=np.int32(64), seed=np.uint8(7), symmetric=np.True_, n_samples=np.int8(5))
    made = Recipe(**given)
    assert made == Recipe(w_bit=3, group_size=64, seed=7, symmetric=True, n_samples=5)
    assert json.loads(json.dumps(made.to_json()))["seed"] == 7 and type(made.seed) is int
    assert Recipe(bits_per_weight=np.float64(3.5)).bits_per_weight == 3.5
    with pytest.raises(OptionError, match="is not one of 3, 4"):
        Recipe(w_bit=np.array([3, 4]))


@pytest.mark.parametrize("awq", ["none", Awq.NONE])
def test_scales_without_awq_contradict_each_other(awq):
    with pytest.raises(OptionError, match="^`scales` means nothing with `awq=none`; leave it out$"):
        Recipe(awq=awq, scales="s.pt")
    for other in ("auto", "load", "run"):
        assert Recipe(awq=other, scales="s.pt").scales == "s.pt"


def test_paths_become_what_json_holds():
    recipe = Recipe(scales=Path("folder") / "s.pt", calib_data=Path("text.txt"))
    assert recipe == Recipe(scales="folder/s.pt", calib_data="text.txt")
    assert json.loads(json.dumps(recipe.to_json()))["scales"] == "folder/s.pt"


def test_a_recipe_is_a_value():
    recipe = Recipe(awq="run")
    for field in fields(Recipe):
        with pytest.raises(FrozenInstanceError):
            setattr(recipe, field.name, getattr(recipe, field.name))
    assert recipe == Recipe(awq=Awq.RUN) != Recipe() and hash(recipe) == hash(Recipe(awq="run"))
    assert recipe.awq is Awq.RUN, "a name becomes the mode it means"


@pytest.mark.parametrize(("awq", "solver"), [("auto", "gptq"), ("run", "gptq"), ("load", "rtn"), ("none", "rtn")])
def test_the_solver_nobody_named(awq, solver):
    recipe = Recipe(awq=awq)
    assert recipe.solver is None and recipe.settled() == Recipe(awq=awq, solver=solver)
    assert recipe.method is Recipe(solver=solver).method
    assert Recipe(awq=awq, solver="hqq").settled().solver == "hqq"


def test_a_group_size_is_filled_in_where_one_is_given():
    assert Recipe().settled().group_size is None and Recipe().settled(64).group_size == 64
    assert Recipe(group_size=32).settled().group_size == 32


def test_it_is_known_before_torch_is_loaded():
    code = (
        "import sys; from quantization.recipe import Recipe; Recipe(w_bit=3, solver='learned').settled().method; "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
