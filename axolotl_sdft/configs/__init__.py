"""Ready configurations: those that ship with the package (``catalogue``), and what makes one's own of use to others
(``checking``).
"""
