"""Which layers to remove, what else could go, what it saves, and the tables and pictures that show it. No model runs
here.
"""
