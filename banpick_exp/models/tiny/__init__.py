"""The embedded default: a small MoE that is really trained, its tasks, and its positive control."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""What ships: `checkpoint/` (Hugging Face format) and `data/` (one JSONL file a domain and split)."""

DOMAINS = ("math", "code", "knowledge")
SPLITS = ("calibration", "dev", "test")
