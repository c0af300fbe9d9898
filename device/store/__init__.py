"""What a device remembers: sessions, cycles and timeline, their sound, and how they are judged again."""
