"""Frameworks that run the stages. The stages know none of them; each has a room of its own here."""
