"""The self-distilled dataset: rows -> prompts -> answers -> checks -> rows, with a journal that survives a kill."""
