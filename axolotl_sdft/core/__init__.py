"""What every stage stands on, and nothing that knows a stage.

``artifacts`` (folders written whole or not at all), ``identity`` and ``model_folder`` (what a model is),
``seed_folder`` (where it is), ``locks`` and ``ranks`` (processes in step), ``runtime`` (devices and progress),
``errors``, ``plain_values`` (what JSON has no form for), and ``texts``, ``pages`` and ``safe_output`` (what people
read). No module here imports torch when it is imported.
"""
