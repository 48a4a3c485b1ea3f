"""What an agent must remember: batched worlds with three faces."""
