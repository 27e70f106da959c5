# make demo   a small trained Gemma 4 MoE: planned, quantized, loaded, compared
# make test   formatting, lints, types, and the tests
# make test-full   the same with every case of every test, as before a release
# make test-remedies   what is said of shards and adapters, followed with the tools themselves
# make test-engines   what engines do with names, against their own code
PYTHON ?= python3
BIN := .venv/bin
OLDEST_TRITON := build/triton/3.6.0
# a worker for each core; the tests of a file, which share what they make, in one
TOGETHER := -n auto --dist loadfile

# each process of a test would compile the sources again
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-full test-engines test-remedies test-vllm lint env golden bench bench-real quality budget false-alarms torture clean

demo: env
	$(BIN)/g4convert demo --family moe demo

test: lint
	$(BIN)/python -m pytest --wide $(TOGETHER)

test-full: lint $(OLDEST_TRITON)
	$(BIN)/python -m pytest --full $(TOGETHER)
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m pytest --full -n auto -m compiled tests/forward/triton

# the kernels are compiled with, and run as compiled by, the oldest Triton that pyproject.toml allows, too
$(OLDEST_TRITON): .venv/.made
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ 'triton==$(@F); sys_platform == "linux"'

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

env: .venv/.made

# torch first and alone: the plain name would bring the CUDA build of a newer release on a machine without a GPU.
.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# the contracts of g4convert/engines against the engines' own code, from their wheels (0.9 GB); ENGINE_WHEELS=DIR has them
test-engines: build/engines/.made
	build/engines/env/bin/python tests/engines/compare.py

build/engines/.made:
	$(PYTHON) -m venv build/engines/env
	build/engines/env/bin/pip install --quiet --disable-pip-version-check -c constraints.txt pydantic pyyaml regex
	touch $@

# what g4convert says of shards and adapters that training left, followed with DeepSpeed, verl, Accelerate, torch, PEFT
# and mlx-lm (verl, whose pins are older, without what it needs to train)
test-remedies: build/remedies/.made
	build/remedies/env/bin/python tests/remedies/follow.py
	build/remedies/env/bin/python tests/remedies/merge.py

build/remedies/.made:
	$(PYTHON) -m venv build/remedies/env
	build/remedies/env/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/remedies/env/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . accelerate deepspeed peft \
		'mlx[cpu]; sys_platform == "linux"' mlx-lm ninja ray tensordict codetiming hydra-core pandas pyarrow dill
	build/remedies/env/bin/pip install --quiet --disable-pip-version-check --no-deps verl
	touch $@

# what g4convert writes, loaded by a real vLLM (its CPU build and torchvision, at VLLM_PYTHON); 13 minutes
test-vllm: env
	VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest tests/engines/check_vllm.py

# rewrite the golden files and generated docs; read the difference before committing it
golden: env
	G4CONVERT_GOLDEN=write $(BIN)/python -m pytest -q --wide -m golden

# speed against a peer and the machine's limits; `--help` says more
bench: env
	$(BIN)/python tests/benchmarks/quantize.py bench

# every command on a real 270M model, fetched from the package registry into bench/real
bench-real: env
	$(BIN)/python tests/benchmarks/verify.py bench/real

# KL of every method and of peers (interpreters with llmcompressor and datasets: PEER, gptqmodel: GPTQMODEL, auto-round
# and compressed-tensors: AUTOROUND) on that model, into docs/quality.md; resumable, hours on two cores
quality: env
	$(BIN)/python tests/benchmarks/quality.py bench/real $(if $(PEER),--peer $(PEER)) \
		$(if $(GPTQMODEL),--gptqmodel $(GPTQMODEL)) $(if $(AUTOROUND),--autoround $(AUTOROUND))

# bits that `fit` chooses for that model, beside uniform recipes, by `mse` and by `gptq`, into docs/quality.md; resumable,
# an hour and a half of one core
budget: env
	$(BIN)/python tests/benchmarks/budget.py bench/real

# `verify` on sound checkpoints: every family, recipe and three seeds; 20 minutes
false-alarms: env
	$(BIN)/python tests/benchmarks/false_alarms.py

# pairs of runs on one output, killed at random, and damaged inputs of every command; 500 rounds take some minutes
ROUNDS ?= 60
torture: env
	$(BIN)/python tests/torture/torture.py --rounds $(ROUNDS)

clean:
	rm -rf .venv demo bench build *.egg-info
