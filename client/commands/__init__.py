"""The commands of a site, one module per purpose. Each has `add`, which puts its commands into the parser."""
