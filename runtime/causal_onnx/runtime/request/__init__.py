"""A request, checked against the contract before onnxruntime sees it."""
