"""What a device is: its settings and their defaults; and what the three commands share."""
