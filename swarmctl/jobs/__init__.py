"""What trains, merges and examines models, shipped to hosts as it is and run there with the training
environment.

A job is `python -m swarmctl.jobs spec.json` in its run folder, the same here and there. This package
imports nothing of swarmctl but itself, and torch, transformers and trl only inside functions.
"""
