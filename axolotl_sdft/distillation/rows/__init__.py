"""Kinds of rows, and where their conversations and trained answers are. ``formats`` has one for each of Axolotl's
dataset types; what can't be rewritten is left alone, and counted (``left_alone``).
"""
