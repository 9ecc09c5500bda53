PYTHON ?= python3
BIN := .venv/bin
OUT ?= results/demo
ARGS ?=

.PHONY: demo test bench gpu clean

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

# On a machine with a GPU, in an environment with torch's CUDA build: pip install -e '.[dev]'
gpu:
	$(PYTHON) -m pytest tests/ops/test_triton.py tests/ops/test_gpu.py $(ARGS)
	$(PYTHON) -m leapformer bench attention --backend triton,chunked \
		--out docs/results/attention_gpu.json

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps simuleval==1.1.4
	touch $@

clean:
	rm -rf .venv build dist
