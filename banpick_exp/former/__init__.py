"""Commands as they were typed before there was one command line: `python -m banpick_exp.verify` and the like.

The package puts this folder on its own path, so that the old module names are found. Nothing imports it.
"""
