"""Axolotl: ``plugin`` translates its hooks into calls of ``stages``, ``commands`` serves the command line.

All that is known of Axolotl's configuration, datasets, versions and output folders is here: which keys make no sense
with the stages (``rules``, ``layer_numbers``), which rows it would train on (``datasets``, ``held_out``), which
checkpoint a trained model started from (``pruned_base``), and where its versions differ (``compat``).
"""
