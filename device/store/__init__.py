"""The store: sessions with cycles, timeline and sound, and how they are judged again."""
