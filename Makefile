# Every command a person needs, from a clean checkout. `make` alone lists them.
#
# Recipes end in `exec`, so that the program itself, not a shell around it, receives Ctrl-C and a
# terminate signal, and can take its processes down before it leaves. tools/run.sh hands them on.

PYTHON ?= python3
SETUP_PYTHON := $(PYTHON)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.complete
AWS_VENV := .venv-aws
AWS_STAMP := $(AWS_VENV)/.complete
AUDIT_VENV := .venv-audit
AUDIT_STAMP := $(AUDIT_VENV)/.complete
WHEEL_VENV := .venv-wheel
WHEEL_STAMP := $(WHEEL_VENV)/.complete
AUDITED := control function function_kms dev audit

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test test-localstack audit validate prove soak-memory bench bench-beside lint format types contracts lock lock-jars wheel clean java plan
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-print-directory --no-builtin-rules
# Tests, demo and benchmarks start many processes: without bytecode, each would compile the sources again.
export PYTHONDONTWRITEBYTECODE :=

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv with everything pinned (done by the other commands when needed)
	@echo "ready: $(VENV)"

$(STAMP): requirements/dev.txt pyproject.toml tools/setup.sh
	@exec sh tools/setup.sh "$(SETUP_PYTHON)" "$(VENV)" "$(STAMP)" requirements/dev.txt .

$(AWS_STAMP): requirements/aws.txt tools/setup.sh
	@exec sh tools/setup.sh "$(SETUP_PYTHON)" "$(AWS_VENV)" "$(AWS_STAMP)" requirements/aws.txt

$(AUDIT_STAMP): requirements/audit.txt tools/setup.sh
	@exec sh tools/setup.sh "$(SETUP_PYTHON)" "$(AUDIT_VENV)" "$(AUDIT_STAMP)" requirements/audit.txt

$(WHEEL_STAMP): requirements/wheel.txt tools/setup.sh
	@exec sh tools/setup.sh "$(SETUP_PYTHON)" "$(WHEEL_VENV)" "$(WHEEL_STAMP)" requirements/wheel.txt

java:
	@exec sh tools/require_java.sh

plan:
	@exec sh tools/require_java.sh plan "$(VENV)"

demo: plan $(STAMP) ## run the examples on a real stream and check the outcome (two minutes at most, after setup)
	@exec sh tools/run.sh $(RUN) -m tenuto_local.demo

dev: $(STAMP) ## keep the stack up for one example: make dev APP=examples/food_order
	@test -n "$(APP)" || { echo "make dev: say which example, for instance: make dev APP=examples/food_order" >&2; exit 2; }
	@exec sh tools/run.sh $(RUN) -m tenuto_cli dev "$(APP)"

test: java $(STAMP) $(AWS_STAMP) lint types contracts ## lint, types, import contracts and every test (ten minutes at most)
	@exec $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

test-localstack: $(STAMP) $(AWS_STAMP) ## a project outside the repository, and the AWS-facing tests, at LOCALSTACK_HOST or AWS_ENDPOINT_URL, else at a LocalStack of their own
	@sh tools/setup_localstack.sh .venv-localstack .venv-localstack/.complete requirements/localstack.txt
	@exec $(RUN) -m pytest -rs -o faulthandler_timeout=900 tests/outside tests/localstack

audit: $(AUDIT_STAMP) ## look up known vulnerabilities of what is pinned; AUDIT_OPTIONAL=1 where no database may answer
	@exec $(AUDIT_VENV)/bin/python tools/audit.py $(AUDITED:%=requirements/%.txt)

validate: $(AWS_STAMP) ## sam validate and cfn-lint on the templates
	@exec sh tools/validate.sh $(AWS_VENV)/bin

prove: java $(STAMP) ## thousands of seeds, crashes at every write, protocol mutants, kills on the real stack
	@exec $(RUN) -m tests.prove

soak-memory: java $(STAMP) ## the control plane in 512 MB under backlogs, large heads, bombs and waiting calls (half an hour at most)
	@exec sh tools/run.sh $(RUN) -m tests.stack.soak_memory

bench: java $(STAMP) ## measure five workloads on the embedded stack and write JSON
	@exec $(RUN) -m bench

# For instance: make bench-beside BESIDE="--scale 0.2 --rounds 1"
bench-beside: java $(STAMP) ## measure tenuto beside Restate on this machine (20 minutes; BESIDE="--scale 0.2 --rounds 1" for a look)
	@exec sh tools/run.sh $(RUN) -m bench.beside $(BESIDE)

lint: $(STAMP) ## ruff: rules and format
	@$(RUN) -m ruff check --quiet
	@exec $(RUN) -m ruff format --quiet --check

types: $(STAMP) ## mypy, strict
	@exec $(RUN) -m mypy --no-error-summary

contracts: $(STAMP) ## which package may import which
	@exec sh tools/quiet.sh $(VENV)/bin/lint-imports --cache-dir .cache/import-linter

format: $(STAMP) ## rewrite what ruff can put right
	@$(RUN) -m ruff check --quiet --fix-only
	@exec $(RUN) -m ruff format --quiet

lock: ## resolve every locked file under requirements/ again (needs uv)
	@exec sh tools/lock.sh

lock-jars: java $(STAMP) ## fetch Kafka and DynamoDB Local afresh and list the hashes of their jars
	@exec $(RUN) tools/lock_jars.py

wheel: $(WHEEL_STAMP) ## build the wheel into dist/ in seconds; the same sources make the same bytes
	@exec $(WHEEL_VENV)/bin/python tools/build_wheel.py

clean: ## remove what these commands created
	@rm -rf $(VENV) $(AWS_VENV) $(AUDIT_VENV) $(WHEEL_VENV) .venv-localstack .aws-sam .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	@rm -rf examples/*/.tenuto
	@find adapters control_plane infra cli tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
