"""What a distilled dataset leaves behind: its rows and provenance (``dataset``), the page for people (``report``), the
card for the Hub (``card``), the distribution gap, previews of a few rows, and conversations with corrections.
"""
