"""The recovery report as people see it: in the terminal, as a page, in a model card; ``table`` is the same in all
three.
"""
