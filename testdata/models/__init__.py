"""One module a model: its architecture, and `make`, which trains it and returns it as ONNX."""
