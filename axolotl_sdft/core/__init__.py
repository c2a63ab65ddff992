"""What every stage stands on, and nothing that knows a stage.

``artifacts`` (folders written whole or not at all), ``model_folder`` (where a model is, and what its files say),
``identity`` (which model it is), ``trained_on`` (which one it started from), ``locks`` and ``ranks`` (processes in
step), ``runtime`` (devices and progress), ``errors``, ``plain_values`` (what JSON has no form for), and ``texts`` and
``safe_output`` (what people read). No module here imports torch when it is imported.
"""
