"""Rounds of questions to the seed model, and the journal that keeps answers and verdicts by their content.

``rounds`` fills the journal, ``judging`` has each answer judged once, ``selection`` decides which answer a row takes.
"""
