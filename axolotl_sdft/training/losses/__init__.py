"""Losses of tokens: divergences between a teacher and the student, fused and in chunks, with or without whole
logits.
"""
