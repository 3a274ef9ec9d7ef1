"""banpick_exp: can this MoE checkpoint route smarter, and what does it cost?"""

__version__ = "0.1.0"
