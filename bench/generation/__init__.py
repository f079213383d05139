"""A Llama-style language model in whole runtimes: ours, onnxruntime-genai, PyTorch eager."""
