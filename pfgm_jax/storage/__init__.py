"""What is kept on disk, and read back checked: checkpoints, weights, caches, other people's files."""
