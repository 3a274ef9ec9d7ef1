"""The router of banpick_exp: its policy tensors (`table`) and its definition in readable torch (`reference`).

Imports torch and nothing else of this project, so that a kernel can be tested and reused on its own.
"""
