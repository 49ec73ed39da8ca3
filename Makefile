# make demo: sd-emoji packaged, served, asked, and its pictures under build/demo
# make test: every check, as .ci/run runs them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/python -m sd_mlflow.demo endpoints/requests/sample-request.json build/demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Constraints before anything else: a looser request for torch can pull gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[serve,azure,spark,emoji,test]'
	touch $@

clean:
	rm -rf build $(VENV)
