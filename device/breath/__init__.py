"""From sound to breath cycles: where they are and whether they can be judged; and a simulator of breathing."""
