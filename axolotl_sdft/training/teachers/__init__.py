"""Where the distilled predictions come from, and how they are kept until they are needed."""
