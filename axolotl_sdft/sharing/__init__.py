"""Ready configurations: those that ship with the package, and what makes one's own of use to others."""
