# Two commands matter: `make reproduce` and `make test`. Each makes .venv if there is none and installs what it needs.
PROFILE ?= tiny
OUT     ?= runs/$(PROFILE)
# The site's renderer, quarto or pandoc; empty: Quarto where it is on the PATH, pandoc elsewhere.
RENDERER ?=
# EXECUTE=1 executes the examples for the site too (foundations, tools, guide); names of pages in its place execute those alone.
EXECUTE ?=
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON  ?= python3
VENV    ?= .venv
BIN      = $(VENV)/bin

export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BENCH ?= sweep weak score preference collect finetune limit scaling agreement
RUN   ?=
# The committed run that shows misalignment itself, on its page of any site and in a table of README and index.
ADVICE := small-advice

.PHONY: help install reproduce verify test sync contract smoke notebooks alone pages package docs bench fuzz gpu-check reference clean

help:
	@echo "make reproduce [PROFILE=tiny|small|smoke|own.toml] [OUT=folder] [JOBS=n]   every figure, table and verdict, then the site"
	@echo "make verify [OUT=folder]                                                 is a run the committed one?"
	@echo "make test                                                                what CI runs"
	@echo "make install                                                             .venv alone"
	@echo "make smoke                                                               the study at its smallest, in runs/smoke"
	@echo "make docs [OUT=folder] [RENDERER=quarto|pandoc] [EXECUTE=1]              the site of a run, checked; with its examples executed"
	@echo "make bench [BENCH=\"sweep score\"] [RUN=runs/small]                        measure against other libraries"
	@echo "make fuzz [INPUTS=2000]                                                  command lines that nobody would write, from a new seed"
	@echo "make gpu-check [MODELS=folder] [CHECK=\"--model tiny-llama\"]               what only a GPU can check: six parts, a table, build/gpu-check.json"
	@echo "make reference PROFILE=small                                             a run into data/reference, its table into README and index"
	@echo "make clean                                                               remove builds, the site and the smoke runs"
	@echo "What takes hours, another environment or a fetched model is a script in tools/; --help says what it does."

install: $(VENV)/.installed

$(VENV)/.installed: setup.py settings.ini pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): install Python 3.11 or newer with its venv module"; exit 2; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

reproduce: install
	@$(BIN)/em-repro reproduce --profile $(PROFILE) --out $(OUT) --jobs $(JOBS)
	@$(MAKE) --no-print-directory docs OUT=$(OUT) && echo "site: _docs/index.html"
ifeq ($(PROFILE),tiny)
	@$(MAKE) --no-print-directory verify
endif

# Other processors give other last digits: what moved is said and fails nothing, what cannot be compared does.
verify: install
	@$(BIN)/em-repro verify $(OUT) || test $$? -eq 1

# Everything that CI runs, in the order in which it is quickest to fail. Two cores are busy all
# along: the last three steps cannot fill them alone and go side by side.
test: install sync contract smoke notebooks
	@$(MAKE) --no-print-directory --jobs=2 alone pages package
	@echo "all checks passed"

sync: install
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-export
	@test ! -d .git || test -z "$$(git status --porcelain -- nbs em_repro)" || { git status --short -- nbs em_repro; git diff --stat -- nbs em_repro; echo "notebooks and modules differ: run nbdev-clean and nbdev-export and commit the result"; exit 1; }

contract: install
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --durations=10 tests

# The stages of one family are those that the run of all four has computed.
smoke: install
	$(BIN)/em-repro reproduce --profile smoke --out runs/smoke --jobs $(JOBS)
	$(BIN)/em-repro claims --from runs/smoke/evidence/code.parquet > /dev/null   # fails where a verdict comes out otherwise
	$(BIN)/em-repro reproduce --profile smoke --out runs/smoke --jobs $(JOBS) --only robustness,baselines,mitigations,gating
	mkdir -p runs/one-family && cp -r runs/smoke/store runs/one-family/
	$(BIN)/em-repro reproduce --profile smoke@tiny-llama --out runs/one-family --jobs $(JOBS) --only 05,06,07

# Every cell that is not marked otherwise. After `make smoke` the stages are in its store; without
# it they are computed one at a time, by whichever notebook asks first.
notebooks: install
	OMP_NUM_THREADS=1 EM_REPRO_JOBS=1 CUDA_VISIBLE_DEVICES="" $(BIN)/nbdev-test --n-workers $(JOBS)

# One notebook alone, in a fresh store, must give the full run's tables to the byte.
alone: install
	@test -d runs/smoke/tables || { echo "there is no run to compare with: make smoke"; exit 1; }
	rm -rf runs/alone && mkdir -p build
	$(BIN)/papermill --no-progress-bar -k python3 nbs/06_specificity.ipynb build/alone.ipynb -p profile smoke -p out runs/alone
	@for table in runs/alone/tables/code/*.csv; do cmp "$$table" "runs/smoke/tables/code/$$(basename $$table)" || exit 1; done; echo "06 alone gives the same tables"

pages: install
	@$(MAKE) --no-print-directory docs OUT=runs/smoke RENDERER=pandoc   # the pages that the browser's tests know
	$(BIN)/python tools/browser.py --if-there

package: install
	$(BIN)/python tools/package.py

# The libraries measured against live in an environment of their own.
build/bench/.installed: setup.py settings.ini constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv build/bench
	build/bench/bin/python -m pip install -q -c constraints.txt -e . trl datasets
	build/bench/bin/python -m pip install -q --no-deps -r benchmarks/requirements.txt
	@touch $@

bench: build/bench/.installed
	@for name in $(BENCH); do build/bench/bin/python benchmarks/$$name.py --run "$(RUN)" || exit 1; done

# CI tries 200 command lines, always the same. These are others each time; the seed is printed.
INPUTS ?= 2000
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzzing.py --inputs $(INPUTS)

# Eight minutes on one GPU. No network is needed where MODELS has fetched weights. CHECK="--device cpu --quick" tries it without a GPU.
MODELS ?=
CHECK  ?=
gpu-check: install
	$(BIN)/python tools/gpu_check.py $(if $(MODELS),--models $(MODELS)) $(CHECK)

docs: install
	$(BIN)/python docs/render.py --run $(OUT) --beside data/reference/$(ADVICE) --out _docs $(if $(RENDERER),--renderer $(RENDERER)) $(if $(EXECUTE),--execute $(filter-out 1,$(EXECUTE)))
	$(BIN)/python docs/check.py _docs

# What of a run is committed: tables, figures as svg, executed notebooks, evidence, ledger, card and the log of its stages; no weights, no store.
# README and index lead with LEAD, its verdicts on the paper's behaviour.
LEAD := small
reference: install
	rm -rf data/reference/$(PROFILE) && mkdir -p data/reference/$(PROFILE)
	cp -r $(OUT)/tables $(OUT)/claims $(wildcard $(OUT)/evidence) $(OUT)/notebooks $(OUT)/claims.json $(OUT)/provenance.json data/reference/$(PROFILE)/
	find data/reference/$(PROFILE)/notebooks -name '*.failed.ipynb' -delete
	cd $(OUT) && find figures -name '*.svg' -exec cp --parents {} $(CURDIR)/data/reference/$(PROFILE)/ \;
	cp $(OUT)/store/computed.jsonl data/reference/$(PROFILE)/stages.jsonl
	@for file in README.md nbs/index.ipynb; do \
	$(BIN)/em-repro readme --run data/reference/$(LEAD) --file $$file --behaviour code && \
	$(BIN)/em-repro readme --run data/reference/$(ADVICE) --file $$file --mark advice || exit 1; done
	$(BIN)/python tools/prose.py

clean:
	rm -rf _docs build dist *.egg-info runs/smoke runs/one-family runs/alone
