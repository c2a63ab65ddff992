"""Merges two trained models into one: the formula, checkpoints, LoRA adapters, the stage, and a sweep over ratios."""
