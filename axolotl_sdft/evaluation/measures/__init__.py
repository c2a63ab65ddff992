"""One module for each thing that is measured of a model: likelihood, answers, speed, drafting, task scores; and the
confidence intervals that all of them take (``bootstrap``).
"""
