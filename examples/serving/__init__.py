"""The server at work: a trained model, a real client, the page: `python -m examples.serving`."""
