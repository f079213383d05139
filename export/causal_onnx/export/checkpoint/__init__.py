"""From a checkpoint to a model: a file, or a folder with all that goes with it."""
