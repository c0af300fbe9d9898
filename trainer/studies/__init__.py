"""A question, the settings that answer it by comparison, and the result; the TOML files are the shipped studies."""
