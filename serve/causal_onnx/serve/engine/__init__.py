"""Requests to one model: queued, batched and answered, with or without HTTP."""
