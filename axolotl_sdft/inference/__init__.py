"""How every stage talks to a model: loads it, turns chats into its tokens, generates answers, measures likelihoods.

``interfaces`` holds what generation is asked and gives back, ``backends`` registers the three that ship: ``local`` (in
this process), ``openai`` (servers) and ``vllm`` (a server that is a child process). ``loading``, ``prompts``,
``chat_templates``, ``likelihood`` and ``forwarding`` serve all stages. What the stages may use is any public
name of the modules here, and of the rooms below only what ``backends`` makes.
"""
