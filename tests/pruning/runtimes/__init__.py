"""Whether other programs run pruned checkpoints as transformers does; opt-in, each in an environment of its own."""
