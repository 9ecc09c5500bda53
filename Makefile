PYTHON ?= python3
BIN := .venv/bin
OUT ?= results/demo
ARGS ?=

.PHONY: demo test bench clean

demo: .venv/ready
	$(BIN)/leapformer lra compare --task listops --attentions leap,cosformer,linear,softmax \
		--preset quick --seeds 0 --out $(OUT) $(ARGS)

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto $(ARGS)

bench: .venv/ready
	$(BIN)/leapformer bench attention --out results/attention.json $(ARGS)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps simuleval==1.1.4
	touch $@

clean:
	rm -rf .venv build dist
