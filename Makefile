# Each target makes its own virtual environment when it is missing; PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check docs clean

demo: $(VENV)/ready
	$(BIN)/onnxcompress testdata/lenet5_digits.onnx out.onnx --passes prune,quant \
		--calib testdata/digits_calib.npz --eval testdata/digits_test.npz

test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy onnxcompress
	$(BIN)/python docs/generate.py --check

docs: $(VENV)/ready
	$(BIN)/python docs/generate.py

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[images,test,check]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info out.onnx
