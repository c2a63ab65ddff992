"""Where the distilled predictions come from, and how they are kept until they are needed.

``seed_model`` is the unpruned model as teacher: ``origin`` finds it, ``shared_layers`` builds it around the student's
own layers, ``removed_layers`` loads what those lack, ``own`` loads the whole of it. ``prediction`` and
``replay_buffer`` are DynSDPB's.
"""
