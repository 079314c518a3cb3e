"""From a checkpoint to the files that other tools read."""
