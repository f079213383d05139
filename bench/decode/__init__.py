"""One cached step of a Llama-style model: our graph beside that of onnxruntime-genai's builder."""
