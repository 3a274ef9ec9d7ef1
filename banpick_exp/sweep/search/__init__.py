"""How a search space is spent: in blocks with losers stopped (`race`), or sampled (`optuna_study`); docs/search.md."""
