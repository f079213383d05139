"""What operators need: health."""
