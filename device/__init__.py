"""What a device does: it listens, cuts the sound into breaths, classifies them and flags the abnormal ones."""
