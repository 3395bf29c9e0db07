"""The pages that are watched while something runs: data to dicts and HTML fragments. No network: others serve them."""
