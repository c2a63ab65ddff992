"""What was lost by pruning and won back by training, and merging.

``pipeline`` is the way in: it runs what ``spec`` asks for, measure after measure (``measures``), and writes the
``report``. ``merging`` merges trained models, ``summary`` tells what the stages have made.
"""
