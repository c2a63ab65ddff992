"""Small helpers for texts that people read."""


def shortened(text: str, length: int = 60) -> str:
    """Return a text on one line, cut to ``length`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
