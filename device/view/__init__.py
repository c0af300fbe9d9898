"""What people and programs see of a session while it runs."""
