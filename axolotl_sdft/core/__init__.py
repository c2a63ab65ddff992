"""What every stage stands on: the files of a model's folder (``model_folder``) and its identity (``identity``), one
process at a time (``locks``), and the processes of one run in step (``ranks``).

Nothing here imports torch, or another room of the package but its errors and ``runtime``.
"""
