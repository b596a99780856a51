"""The shape of a VideoBERT that is real and tiny."""

from __future__ import annotations

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "visual_feature_size": 6,
    "max_visual_positions": 8, "shared_size": 32, "projection_hidden_size": 16,
}

MOTION = {"frames": 6, "size": 16, "channels": (4, 6), "depth": (1, 2), "outputs": 5}
"""The shape of a motion network that is real and tiny."""
