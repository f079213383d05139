"""What operators need: health, metrics, keys and limits, the log of requests."""
