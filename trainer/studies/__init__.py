"""A question, the settings whose comparison answers it, and what they say; the TOML files are the shipped ones."""
