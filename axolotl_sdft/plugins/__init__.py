"""What other packages can add: the hooks (``specifications``) and what has been registered (``registry``).

Authors of plugins import ``axolotl_sdft.plugin_api`` instead, which holds all that they need.
"""
