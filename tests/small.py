"""Arguments that make each memory small, yet close chunks, fill windows and drop slots within 20 steps."""

SMALL: dict[str, dict] = {
    "rewrite": dict(output_size=6, num_layers=2, num_heads=2, key_size=3, value_size=4),
    "ffm": dict(output_size=6, memory_size=5, context_size=3, max_period=16),
    "hcam": dict(output_size=6, chunk_size=3, num_chunks=2, top_k=1, num_layers=2, num_heads=2),
    "sat": dict(output_size=6, num_places=2, capacity=6, num_layers=2, num_heads=2),
    "lstm": dict(output_size=6, num_layers=2),
    "gru": dict(output_size=6, num_layers=2),
    "rnn": dict(output_size=6, num_layers=2),
    "gtrxl": dict(output_size=6, num_layers=2, num_heads=2, memory_length=5),
    "shm": dict(output_size=6, memory_size=4, num_rows=8),
    "none": dict(output_size=6),
}
