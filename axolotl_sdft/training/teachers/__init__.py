"""Where the distilled predictions come from, and how they are kept until they are needed.

``seed_model`` is the unpruned model as teacher: ``origin`` finds it, ``shared_layers`` builds it around the student's
own layers, ``loading`` loads what those lack, or the whole of it. ``previous_prediction`` holds a prediction for an
iteration, ``prediction`` reads one off a pass, and ``replay_buffer`` keeps the mini-batch that DynSDPB repeats.
"""
