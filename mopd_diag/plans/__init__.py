"""Built-in plans, one TOML file each."""
