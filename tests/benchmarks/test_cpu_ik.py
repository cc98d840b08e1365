"""ik_llama.cpp in the race of whole models, with a stand-in for its library that prints what it is asked."""

import json
import subprocess
import sys

import pytest

from benchmarks.cpu.contestant import Answer, Facts, Job, Spec
from benchmarks.cpu.race import ROOT, Race
from benchmarks.cpu.report import Engine
from benchmarks.cpu.rivals import IK
from benchmarks.typed import from_json, to_json

HEADER = """\
#pragma once
#include <cstdint>
using llama_token = int32_t;
enum ggml_log_level { GGML_LOG_LEVEL_INFO };
enum ggml_type { GGML_TYPE_F16 = 1, GGML_TYPE_Q8_0 = 8 };
struct llama_model { bool mapped, repacked; };
struct llama_context { llama_model* model; };
struct llama_model_params { bool use_mmap, repack_tensors; };
struct llama_context_params {
  uint32_t n_ctx, n_batch, n_ubatch, n_threads, n_threads_batch;
  ggml_type type_k, type_v;
  bool flash_attn;
};
struct llama_batch { llama_token* tokens; int32_t count, position; };
extern "C" {
void llama_log_set(void (*)(ggml_log_level, const char*, void*), void*);
void llama_backend_init();
llama_model_params llama_model_default_params();
llama_context_params llama_context_default_params();
llama_model* llama_model_load_from_file(const char*, llama_model_params);
llama_context* llama_init_from_model(llama_model*, llama_context_params);
void llama_kv_cache_clear(llama_context*);
llama_batch llama_batch_get_one(llama_token*, int32_t, int32_t, int32_t);
int32_t llama_decode(llama_context*, llama_batch);
void llama_synchronize(llama_context*);
}
"""

LIBRARY = """\
#include <cstdio>
#include "llama.h"
void llama_log_set(void (*)(ggml_log_level, const char*, void*), void*) {}
void llama_backend_init() {}
llama_model_params llama_model_default_params() { return {true, false}; }
llama_context_params llama_context_default_params() { return {0, 0, 0, 0, 0, GGML_TYPE_F16, GGML_TYPE_F16, false}; }
llama_model* llama_model_load_from_file(const char* path, llama_model_params how) {
  return path[0] == 'n' ? nullptr : new llama_model{how.use_mmap, how.repack_tensors};
}
llama_context* llama_init_from_model(llama_model* model, llama_context_params p) {
  std::fprintf(stderr, "mapped %d repacked %d positions %u batch %u threads %u kv %d flash %d\\n", model->mapped,
               model->repacked, p.n_ctx, p.n_ubatch, p.n_threads_batch, p.type_v, p.flash_attn);
  return new llama_context{model};
}
void llama_kv_cache_clear(llama_context*) { std::fprintf(stderr, "clear\\n"); }
llama_batch llama_batch_get_one(llama_token* t, int32_t n, int32_t at, int32_t) { return {t, n, at}; }
int32_t llama_decode(llama_context*, llama_batch b) {
  std::fprintf(stderr, "%d tokens from %d at %d\\n", b.count, b.tokens[0], b.position);
  return b.tokens[0] == 99;
}
void llama_synchronize(llama_context*) {}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Of a build, as it is laid out."""
    folder = tmp_path_factory.mktemp("ik")
    for name in ("include", "ggml/include", "common", "build/src", "build/ggml/src"):
        (folder / name).mkdir(parents=True)
    (folder / "common/build-info.cpp").write_text('int LLAMA_BUILD_NUMBER = 4;\nchar const *LLAMA_COMMIT = "83ab";\n')
    (folder / "include/llama.h").write_text(HEADER)
    (folder / "library.cpp").write_text(LIBRARY)
    flags = ["c++", "-shared", "-fPIC", "-I", folder / "include", folder / "library.cpp", "-o"]
    for name in ("build/src/libllama.so", "build/ggml/src/libggml.so"):
        subprocess.run([*flags, folder / name], check=True)
    return folder


def race(checkout) -> Race:
    return Race(prompt=520, new=2, rounds=2, starts=1, threads=3, programs={Engine.IK: str(checkout)})


def contest(spec: Spec, *jobs: Job) -> tuple[list[str], list[str], int]:
    """What it answered, what the library printed last, and the status."""
    command = [race(spec.program).python(spec.engine), "-m", "benchmarks.cpu.contestant", to_json(spec)]
    done = subprocess.run(
        command, input="".join(to_json(job) + "\n" for job in jobs), capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout.splitlines(), done.stderr.splitlines(), done.returncode


def test_its_version_is_its_commit(checkout, tmp_path):
    assert IK.version(str(checkout)) == "83ab"
    assert IK.version(str(tmp_path)) is None  # nothing there
    (tmp_path / "common").mkdir()
    (tmp_path / "common/build-info.cpp").write_bytes((checkout / "common/build-info.cpp").read_bytes())
    assert IK.version(str(tmp_path)) is None  # not built, or without shared libraries


@pytest.mark.parametrize("kv_bits, kind", [(16, 1), (8, 8)])
def test_how_it_is_driven(checkout, kv_bits, kind):
    entry_spec = Spec(Engine.IK, "model.gguf", 3, 522, kv_bits, str(checkout))
    said, printed, status = contest(entry_spec, Job(tuple(range(520)), (7, 8)), Job((5,), ()))
    assert status == 0 and printed == [
        f"mapped 0 repacked 1 positions 522 batch 512 threads 3 kv {kind} flash 1",
        "clear", "512 tokens from 0 at 0", "8 tokens from 512 at 512", "1 tokens from 7 at 520",
        "1 tokens from 8 at 521",
        "clear", "1 tokens from 5 at 0",
    ]  # fmt: skip
    assert from_json(Facts, said[0]).weights is None
    first, second = (from_json(Answer, line) for line in said[1:])
    assert first.token_s > 0 and second.token_s is None


def test_what_it_cannot_do_is_said_in_one_line(checkout):
    said, printed, status = contest(Spec(Engine.IK, "none.gguf", 3, 522, program=str(checkout)))
    assert (said, printed, status) == ([], ["ik_llama.cpp does not open none.gguf"], 1)
    _, printed, status = contest(Spec(Engine.IK, "model.gguf", 3, 522, program=str(checkout)), Job((99,), ()))
    assert (printed[-1], status) == ("llama_decode failed", 1)


def test_the_race_tells_its_directory_to_it_alone(checkout):
    ours = race(checkout)
    assert ours.directory(Engine.IK) == str(checkout) and ours.python(Engine.IK) == sys.executable
    assert ours.directory(Engine.LLAMA) is None and ours.python(Engine.LLAMA) == sys.executable
    assert json.loads(to_json(Spec(Engine.LLAMA, "m", 2, 9)))["program"] == ""
