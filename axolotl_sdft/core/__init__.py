"""What every stage stands on, and nothing that knows a stage.

``artifacts`` (folders written whole or not at all), ``model_folder`` (where a model is, and what its files say),
``identity`` (which model it is), ``trained_on`` (which one it started from), ``locks`` and ``ranks`` (processes in
step), ``runtime`` (devices), ``errors``, ``callables`` (functions where names may stand), and what people read:
``terminal`` (tables and progress), ``texts``, ``pictures``, ``cards`` and ``safe_output`` (no keys in it). No module
here imports torch when it is imported.
"""
