"""Generates on servers that speak the OpenAI protocol. ``backend`` is the way in; the rest knows servers one by one:
their key, whether they serve the seed model, what a request holds, how many fit at once, and what to do when one fails.
"""
