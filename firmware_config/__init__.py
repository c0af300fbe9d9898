"""What a device is: its settings, their defaults, and the shell that its commands share."""
