"""What every stage stands on: the files of a model's folder (``model_folder``) and its identity (``identity``).

Nothing here imports torch, or another room of the package but its errors.
"""
