"""Generates in this process with transformers. ``backend`` is the way in; the rest is its decoder: rows that join and
leave while others go on, their keys and values, and the choice of each next token.
"""
