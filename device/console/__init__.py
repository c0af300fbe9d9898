"""The console: pages in a browser that show a session while it runs, guide an exam, and keep its results."""
