# Two commands for everyone: `make verify` and `make test`. Both set up what they need on a machine with Python 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where pip looks for torch before anywhere else: https://download.pytorch.org/whl/cpu has builds without CUDA, 0.2 GB in place of 3
TORCH_INDEX ?=
export HF_HUB_OFFLINE := 1

.PHONY: setup verify test lint docs checks-reference test-slow bench bench-full faults sound fuzz fuzz-pictures native native-arm phone embedded-model train golden calibration evaluate release changelog clean

verify: $(READY)  ## verify the embedded model and print the verdict
	$(BIN)/python -m verifier.test_pte golden/llava_tiny/llava_tiny.pte

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -n 3 --dist loadgroup -q

test-slow: $(READY)  ## also what takes minutes
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "slow or not slow"

lint: $(READY)  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation as a site, strictly, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

checks-reference: $(READY)  ## docs/checks.md from the docstrings of the checks, the tables of docs/tolerances.md from the limits
	$(BIN)/python -m verifier.checks.reference docs/checks.md
	$(BIN)/python -m verifier.checks.tolerances docs/tolerances.md

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit((not (3, 11) <= v < (3, 14)) and f"Python 3.11, 3.12 or 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

bench: $(READY)  ## ratios measured side by side; BASE=COMMIT also times the whole gate against an earlier commit
	$(BIN)/python -m tests.bench.export
	$(BIN)/python -m tests.bench.layers
	$(BIN)/python -m tests.bench.memory
	$(if $(BASE),$(BIN)/python -m tests.bench.gate $(BASE))

bench-full: $(READY)  ## the announcement's tables at full size: make bench-full MODEL=DIR WORK=DIR; writes docs/full-size.md
	$(BIN)/python -m tests.bench.full $(MODEL) $(WORK)
	$(BIN)/python -m tests.bench.memory $(MODEL) $(WORK)

faults: $(READY)  ## inject real faults one at a time: does the gate find them? Writes docs/faults.md
	$(BIN)/python -m verifier.faults --write docs

sound: $(READY)  ## 213 sound artifacts: does the gate pass them all? An hour
	$(BIN)/python -m verifier.faults --clean --write docs

fuzz: $(READY)  ## 50,000 mutated programs against the reader: half an hour
	$(BIN)/python -m tests.bench.fuzz_reader

fuzz-pictures: $(READY)  ## 20,000 damaged pictures against llava_main's reader, under sanitizers
	$(BIN)/python -m tests.runners.picture_fuzz

native: $(READY)  ## build llava_main, the C++ runner, for this machine
	$(BIN)/python -m runner.native.build

native-arm: $(READY)  ## cross-compile llava_main for aarch64 (needs Debian's g++-aarch64-linux-gnu)
	$(BIN)/python -m runner.native.build --arch aarch64

phone: $(READY)  ## llava_main for any arm64 Linux or adb shell, in one folder without an NDK (needs Debian's g++-aarch64-linux-gnu)
	$(BIN)/python -m runner.native.phone

train: $(READY)  ## train llava_tiny from nothing: an hour or two, resumable
	$(BIN)/python -m golden.llava_tiny.make.train --work build/train

golden: $(READY)  ## answer the golden images again with the fp32 model
	$(BIN)/python -m golden.llava_tiny.make.golden

release: $(READY)  ## wheel and source distribution of this commit, checked, with notes and hashes, into build/release; INSTALL="python3.11 python3.12" tries the wheel
	$(BIN)/python -m tools.release $(addprefix --install ,$(INSTALL))

changelog: $(READY)  ## move the fragments of changelog.d into CHANGELOG.md, before the commit of a release
	$(BIN)/python -m towncrier build --yes

TINY := golden/llava_tiny
embedded-model: $(READY)  ## export golden/llava_tiny/llava_tiny.pte again
	$(BIN)/python -m verifier.export_llava --pte-name $(TINY)/llava_tiny.pte

calibration: $(READY)  ## measure the embedded program and four exports calibrated on other images: half an hour
	mkdir -p build
	$(BIN)/python -m golden.llava_tiny.make.variants build/variants > build/variants.txt
	$(BIN)/python -m verifier.calibrate $(TINY)/llava_tiny.pte --repeats 2 $$(sed 's/^/--variant /' build/variants.txt) --reason "$(or $(REASON),embedded model)"

evaluate: $(READY)  ## score the embedded model on 256 unseen scenes, in fp32 and by the program
	$(BIN)/python -m golden.llava_tiny.make.evaluate --pte $(TINY)/llava_tiny.pte

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
