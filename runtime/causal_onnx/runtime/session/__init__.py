"""One onnxruntime session on one device, and one checked call of it."""
