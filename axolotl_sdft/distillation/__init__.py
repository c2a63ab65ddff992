"""The self-distilled dataset (SDFT, arXiv 2402.13669): rows -> prompts -> answers -> checks -> rows.

``pipeline`` is the way in: it runs what ``spec`` asks for. ``rows`` knows kinds of rows, ``templates`` what the seed
model is asked, ``checks`` which answers pass, ``generation`` the rounds and their journal, ``output`` the dataset and
its report.
"""
