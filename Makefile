# Two commands matter: `make reproduce` and `make test`. Each makes .venv if there is none and installs what it needs.
PROFILE ?= tiny
OUT     ?= runs/$(PROFILE)
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON  ?= python3
VENV    ?= .venv
BIN      = $(VENV)/bin
# The committed run that README and site lead with: real weights where they were run, else the tiny families.
REFERENCE ?= $(firstword $(wildcard data/reference/small data/reference/tiny))

export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BENCH ?= sweep weak score collect finetune limit scaling agreement
RUN   ?=

.PHONY: bench calibrate measured audit-calibrate scorer test-slurm reproduce test install sync contract notebooks smoke alone docs docs-smoke package reference readme vendor clean help browser browser-tools test-browser screenshots test-llamacpp audit-small

help:
	@echo "make reproduce [PROFILE=tiny|small|smoke|own.toml] [OUT=folder] [JOBS=n]   every figure, table and verdict, then the site"
	@echo "make test                                                                what CI runs"
	@echo "make docs [OUT=folder]                                                   the site of a run"
	@echo "make bench [BENCH=\"sweep score\"] [RUN=runs/small]                        measure against other libraries"
	@echo "make calibrate [JOBS=n]                                                  simulate what every test promises"
	@echo "make measured                                                            count the committed runs anew for em-repro plan"
	@echo "make audit-calibrate                                                     how often the audit is wrong, on tiny adapters"
	@echo "make audit-small [JOBS=n]                                                an insecure adapter on SmolLM2, trained and audited"
	@echo "make test-slurm                                                          the study on a one-node SLURM, jobs being killed"
	@echo "make test-llamacpp                                                       exported vectors in llama.cpp (compiles it: ten minutes)"
	@echo "make test-browser                                                        the site and the report in Chromium: errors, widths, axe-core"
	@echo "make screenshots [RUN=data/reference/small]                              the pictures in docs/screenshots"
	@echo "make scorer                                                              measure the scorer of misaligned answers"

install: $(VENV)/.installed

$(VENV)/.installed: setup.py settings.ini pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): install Python 3.11 or newer with its venv module"; exit 2; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

reproduce: install
	@$(BIN)/em-repro reproduce --profile $(PROFILE) --out $(OUT) --jobs $(JOBS)
	@$(BIN)/python docs/render.py --run $(OUT) --out _docs && echo "site: _docs/index.html"

# Everything that CI runs, in the order in which it is quickest to fail.
test: install sync contract notebooks smoke alone docs-smoke browser package
	@echo "all checks passed"

sync: install
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-export
	@test ! -d .git || test -z "$$(git status --porcelain -- nbs em_repro)" || { git status --short -- nbs em_repro; git diff --stat -- nbs em_repro; echo "notebooks and modules differ: run nbdev-clean and nbdev-export and commit the result"; exit 1; }

contract: install
	$(BIN)/python -m pytest -q tests

notebooks: install
	OMP_NUM_THREADS=1 EM_REPRO_JOBS=1 CUDA_VISIBLE_DEVICES="" $(BIN)/nbdev-test --n-workers 2

smoke: install
	$(BIN)/em-repro reproduce --profile smoke --out runs/smoke --jobs $(JOBS)
	$(BIN)/em-repro reproduce --profile smoke --out runs/smoke --jobs $(JOBS) --only choices,mitigations,rivals
	$(BIN)/em-repro reproduce --profile smoke@tiny-llama --out runs/one-family --jobs $(JOBS) --only 05,06,07

# One notebook alone, in a fresh store, must give the full run's tables to the byte.
alone: smoke
	rm -rf runs/alone && mkdir -p build
	$(BIN)/papermill --no-progress-bar -k python3 nbs/06_specificity.ipynb build/alone.ipynb -p profile smoke -p out runs/alone
	@for table in runs/alone/tables/code/*.csv; do cmp "$$table" "runs/smoke/tables/code/$$(basename $$table)" || exit 1; done; echo "06 alone gives the same tables"

# The libraries measured against live in an environment of their own.
build/bench/.installed: setup.py settings.ini constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv build/bench
	build/bench/bin/python -m pip install -q -c constraints.txt -e .
	build/bench/bin/python -m pip install -q --no-deps -r benchmarks/requirements.txt
	@touch $@

bench: build/bench/.installed
	@for name in $(BENCH); do build/bench/bin/python benchmarks/$$name.py --run "$(RUN)" || exit 1; done

# The error rates, coverage and power of every test, simulated: the full form of tests/test_calibration.py.
calibrate: install
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -c "from em_repro.calibration import write_calibration; print(write_calibration('data', jobs=$(JOBS)))"

# What `em-repro plan` is fitted to, counted anew from the committed runs; INTERRUPTED="label;label" leaves out stages that were cut.
measured: install
	$(BIN)/python -c "from em_repro.plan import write_measured; print(write_measured('data/reference', '$(INTERRUPTED)'.split(';')))"

# False alarms of the audit on harmless adapters, and misses on insecure ones.
audit-calibrate: install
	OMP_NUM_THREADS=1 $(BIN)/python -c "from em_repro.audit import write_audit_calibration; print(write_audit_calibration('data'))"

# An insecure adapter on SmolLM2, trained and audited; goes on where it was stopped.
audit-small: install
	OMP_NUM_THREADS=1 $(BIN)/python -c "from em_repro.audit import write_small_audit; print(write_small_audit('data', 'runs/audit-small', jobs=$(JOBS)))"

# The study as jobs of a one-node SLURM, some of which are killed (needs root and Debian's slurmctld, slurmd, slurm-client and munge).
test-slurm: install
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[cluster]"
	SNAKEMAKE=$(BIN)/snakemake COMMAND=$(BIN)/em-repro workflow/test_slurm.sh

# llama.cpp, compiled in an environment of its own, answers under exported control vectors as we do (fetches SmolLM2).
build/llamacpp/.installed: setup.py settings.ini constraints.txt
	$(PYTHON) -m venv build/llamacpp
	build/llamacpp/bin/python -m pip install -q -c constraints.txt -e . llama-cpp-python==0.3.36
	@touch $@

test-llamacpp: build/llamacpp/.installed
	build/llamacpp/bin/python tests/llamacpp.py 6 $(wildcard runs/audit-small)

# What the scorer of misaligned answers says of the labelled answers that it was not fitted on (fetches the small models).
scorer: install
	$(BIN)/python -c "from em_repro.misaligned import write_scores; print(write_scores('data'))"

# The plotting library inside the report, from npm: another version is one line of data/report/vendored.json (test_report.py compares the digest).
vendor:
	@rm -rf build/vendor && mkdir -p build/vendor
	cd build/vendor && npm pack --silent plotly.js-basic-dist-min@$$($(PYTHON) -c "import json; print(json.load(open('../../data/report/vendored.json'))['version'])") > /dev/null && tar xzf *.tgz
	cp build/vendor/package/plotly-basic.min.js data/report/ && cp build/vendor/package/LICENSE data/report/plotly-LICENSE.txt

docs: install
	$(BIN)/python docs/render.py --run $(OUT) --out _docs
	$(BIN)/python docs/check.py _docs

docs-smoke: smoke
	$(BIN)/python docs/render.py --run runs/smoke --out _docs
	$(BIN)/python docs/check.py _docs

# Playwright drives the system's Chromium and fetches no browser of its own; axe-core comes with axe-playwright-python.
CHROMIUM ?= $(firstword $(shell command -v chromium chromium-browser google-chrome 2>/dev/null))
PAGES     = EM_REPRO_SITE=_docs EM_REPRO_REPORT=runs/smoke/report.html CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -q tests/test_browser.py

browser-tools: install
	@test -n "$(CHROMIUM)" || { echo "no chromium on the PATH: apt-get install chromium, or CHROMIUM=path"; exit 2; }
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[browser]"

test-browser: browser-tools docs-smoke
	$(PAGES)

# A part of `make test` where the tools are there.
browser: docs-smoke
	@if test -n "$(CHROMIUM)" && $(BIN)/python -c "import axe_playwright_python" 2>/dev/null; then echo '$(PAGES)'; $(PAGES); \
	else echo "SKIPPED: the site and the report in a browser (apt-get install chromium, then make test-browser)"; fi

# The committed reference run as a site; the report is that of the smoke run, whose store has answers.
screenshots: browser-tools smoke
	$(BIN)/python docs/render.py --run $(or $(RUN),$(REFERENCE)) --out _docs
	CHROMIUM=$(CHROMIUM) $(BIN)/python docs/screenshots.py --site _docs --report runs/smoke/report.html --out docs/screenshots

# The sdist in an empty environment of its own, without the dev extra, imported from elsewhere.
package: install
	rm -rf build/package && mkdir -p build/package
	$(BIN)/python -m build --sdist --outdir build/package . > build/package/build.log 2>&1 || { tail -20 build/package/build.log; exit 1; }
	$(PYTHON) -m venv build/package/venv
	build/package/venv/bin/python -m pip install -q -c constraints.txt build/package/em_repro-*.tar.gz
	cd build/package && venv/bin/python -c "from em_repro.directions import DifferenceInMeans; from em_repro.profiles import shipped, load_profile; load_profile('tiny'); print('installed from the sdist:', DifferenceInMeans())"
	cd build/package && venv/bin/em-repro doctor

# What of a run is committed: tables, figures as svg, executed notebooks, ledger, card and the log of its stages; no weights, no store.
reference: install
	rm -rf data/reference/$(PROFILE) && mkdir -p data/reference/$(PROFILE)
	cp -r $(OUT)/tables $(OUT)/figures $(OUT)/claims $(OUT)/notebooks $(OUT)/claims.json $(OUT)/provenance.json data/reference/$(PROFILE)/
	rm -f data/reference/$(PROFILE)/notebooks/*/*.failed.ipynb data/reference/$(PROFILE)/figures/*/*.png
	cp $(OUT)/store/computed.jsonl data/reference/$(PROFILE)/stages.jsonl

readme: install
	$(BIN)/em-repro readme --run $(REFERENCE)

clean:
	rm -rf _docs build dist *.egg-info runs/smoke runs/alone
